/* SPDX-License-Identifier: Apache-2.0 */
#include "base/budget.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"

int rr_budget_init(struct rr_budget *b, uint64_t limit_bytes, size_t n_shares)
{
    void *shares = mmap(NULL, n_shares * sizeof(*b->shares), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (shares == MAP_FAILED)
        return -ENOMEM;
    *b = (struct rr_budget){limit_bytes, shares, shares, n_shares};
    return 0;
}

void rr_budget_deinit(struct rr_budget *b)
{
    if (b->shares)
        munmap(b->shares, b->n_shares * sizeof(*b->shares));
    b->shares = b->own = NULL;
}

uint64_t rr_budget_used(const struct rr_budget *b)
{
    uint64_t sum = 0;

    for (size_t n = 0; n < b->n_shares; n++)
        sum += atomic_load(&b->shares[n].used_bytes);
    return sum;
}

uint64_t rr_budget_left(const struct rr_budget *b)
{
    uint64_t used;

    if (!b || !b->limit_bytes)
        return UINT64_MAX;
    used = rr_budget_used(b);
    return used < b->limit_bytes ? b->limit_bytes - used : 0;
}

/* Added before it is compared: two at once may both be refused, but never both let in. */
bool rr_budget_take(struct rr_budget *b, uint64_t bytes)
{
    uint64_t used;

    if (!b || !b->limit_bytes || !bytes)
        return true;
    if (bytes > b->limit_bytes)
        return false;
    used = atomic_fetch_add(&b->own->used_bytes, bytes) + bytes;
    if ((b->n_shares == 1 ? used : rr_budget_used(b)) <= b->limit_bytes)
        return true;
    rr_budget_give(b, bytes);
    return false;
}

void rr_budget_give(struct rr_budget *b, uint64_t bytes)
{
    if (b && b->limit_bytes && bytes)
        atomic_fetch_sub(&b->own->used_bytes, bytes);
}

int rr_budget_refuse(const struct rr_budget *b, uint64_t bytes, struct rr_error *err)
{
    return rr_error_set(
        err, RR_E_SYSTEM, "raise the limit, or let it handle fewer messages at once",
        "it wants %s of memory, and its workflow has %s of %s in use", rr_bytes_text(bytes),
        rr_bytes_text(rr_budget_used(b)), rr_bytes_text(b->limit_bytes));
}

/* --- the machine's --------------------------------------------------------------------------- */

/* The smallest limit of a group and those above it; @path is cut. */
static uint64_t least(const char *root, const char *mount, char *path, const char *file)
{
    uint64_t least = UINT64_MAX;
    char name[PATH_MAX];
    char *slash;

    for (;;) {
        RR_AUTO(rr_file) FILE *f = NULL;

        snprintf(name, sizeof(name), "%s/sys/fs/cgroup%s%s/%s", root, mount, path, file);
        f = fopen(name, "re");
        if (f) {
            long long n = rr_read_number(f, -1); /* "max" is none */

            if (n > 0)
                least = rr_min(least, (uint64_t)n);
        }
        slash = strrchr(path, '/');
        if (!slash)
            return least;
        *slash = '\0';
    }
}

uint64_t rr_cgroup_memory(const char *root)
{
    char name[PATH_MAX], line[PATH_MAX];
    RR_AUTO(rr_file) FILE *f = NULL;
    uint64_t bytes = UINT64_MAX;

    snprintf(name, sizeof(name), "%s/proc/self/cgroup", root);
    f = fopen(name, "re");
    while (f && fgets(line, sizeof(line), f)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;

        if (!path)
            continue;
        line[strcspn(line, "\n")] = '\0';
        *path++ = '\0';
        if (strcmp(path, "/") == 0)
            *path = '\0';
        if (list[1] == '\0') /* version 2 */
            bytes = rr_min(bytes, least(root, "", path, "memory.max"));
        else if (strcmp(list + 1, "memory") == 0)
            bytes = rr_min(bytes, least(root, "/memory", path, "memory.limit_in_bytes"));
    }
    return bytes;
}

uint64_t rr_machine_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 4 * RR_GIB;

    return rr_min(bytes, rr_cgroup_memory(""));
}
