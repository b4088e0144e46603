/* SPDX-License-Identifier: Apache-2.0 */
#define OPENSSL_SUPPRESS_DEPRECATED /* see rr_digest() */
#include "base/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"

#define MAGIC "RRAOT\0\0\1" /* the last byte is the version of this header */
#define MAX_IMAGE (1ull << 30)

struct entry_header {
    char magic[8];
    uint8_t key[RR_DIGEST_BYTES], image[RR_DIGEST_BYTES];
    uint64_t len;
};

/*
 * By libcrypto's plain functions: its newer interface looks for providers of digests first, which
 * takes a millisecond, in every worker that starts, and gives the same.
 */
void rr_digest(const void *a, size_t a_len, const void *b, size_t b_len,
               uint8_t ret[RR_DIGEST_BYTES])
{
    SHA256_CTX c;

    SHA256_Init(&c);
    SHA256_Update(&c, a, a_len);
    if (b)
        SHA256_Update(&c, b, b_len);
    SHA256_Final(ret, &c);
}

/* Of all that is still to come from @fd, which must be @len bytes. */
static int digest_fd(int fd, uint64_t len, uint8_t ret[RR_DIGEST_BYTES])
{
    uint8_t piece[64u << 10];
    SHA256_CTX c;
    ssize_t n;

    SHA256_Init(&c);
    while ((n = read(fd, piece, sizeof(piece))) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if ((uint64_t)n > len)
            return -EBADMSG;
        len -= (uint64_t)n;
        SHA256_Update(&c, piece, (size_t)n);
    }
    SHA256_Final(ret, &c);
    return len == 0 ? 0 : -EBADMSG;
}

void rr_cache_platform(const char *engine_version, uint8_t ret[RR_DIGEST_BYTES])
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen("/proc/cpuinfo", "re");
    __attribute__((cleanup(rr_free_cleanup))) char *line = NULL;
    size_t cap = 0;
    ssize_t n = 0;

    while (f && (n = getline(&line, &cap, f)) > 0)
        if (strncmp(line, "flags", 5) == 0 || strncmp(line, "Features", 8) == 0) {
            rr_digest(engine_version, strlen(engine_version), line, (size_t)n, ret);
            return;
        }
    rr_digest(engine_version, strlen(engine_version), NULL, 0, ret);
}

void rr_cache_key(const uint8_t module[RR_DIGEST_BYTES], const uint8_t platform[RR_DIGEST_BYTES],
                  uint8_t ret[RR_DIGEST_BYTES])
{
    rr_digest(module, RR_DIGEST_BYTES, platform, RR_DIGEST_BYTES, ret);
}

static int make_private_dir(char *path)
{
    struct stat st;

    for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
            return -errno;
        *p = '/';
    }
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return -errno;
    if (stat(path, &st) < 0)
        return -errno;
    if (!S_ISDIR(st.st_mode))
        return -ENOTDIR;
    return st.st_uid == geteuid() && !(st.st_mode & 022) ? 0 : -EPERM;
}

int rr_cache_dir(char **ret)
{
    const char *own = getenv("ROADRUNNER_CACHE_DIR"), *xdg = getenv("XDG_CACHE_HOME"),
               *home = getenv("HOME");
    char *path = NULL;
    int n, r;

    if (own && *own)
        n = asprintf(&path, "%s", own);
    else if (xdg && *xdg == '/')
        n = asprintf(&path, "%s/roadrunner/aot", xdg);
    else if (home && *home == '/')
        n = asprintf(&path, "%s/.cache/roadrunner/aot", home);
    else
        return -ENOENT;
    if (n < 0)
        return -ENOMEM;
    r = make_private_dir(path);
    if (r < 0) {
        free(path);
        return r;
    }
    *ret = path;
    return 0;
}

int rr_cache_path(const char *dir, const uint8_t key[RR_DIGEST_BYTES], char **ret)
{
    char hex[2 * RR_DIGEST_BYTES + 1];

    rr_hex(key, RR_DIGEST_BYTES, hex);
    return asprintf(ret, "%s/%s.aot", dir, hex) < 0 ? -ENOMEM : 0;
}

static int read_all(int fd, void *data, size_t len)
{
    for (char *p = data; len > 0;) {
        ssize_t n = read(fd, p, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EBADMSG;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

static int read_header(int fd, const uint8_t key[RR_DIGEST_BYTES], struct entry_header *h)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || (st.st_mode & 022))
        return -EBADMSG;
    if (read_all(fd, h, sizeof(*h)) < 0 || memcmp(h->magic, MAGIC, 8) != 0 ||
        memcmp(h->key, key, sizeof(h->key)) != 0 || h->len > MAX_IMAGE ||
        (uint64_t)st.st_size != sizeof(*h) + h->len)
        return -EBADMSG;
    return 0;
}

int rr_cache_load_fd(int fd, const uint8_t key[RR_DIGEST_BYTES], uint8_t **ret, size_t *ret_len)
{
    __attribute__((cleanup(rr_free_cleanup))) uint8_t *image = NULL;
    uint8_t digest[RR_DIGEST_BYTES];
    struct entry_header h;
    int r = read_header(fd, key, &h);

    if (r < 0)
        return r;
    image = malloc(h.len ? h.len : 1);
    if (!image)
        return -ENOMEM;
    if (read_all(fd, image, h.len) < 0)
        return -EBADMSG;
    rr_digest(image, h.len, NULL, 0, digest);
    if (memcmp(digest, h.image, sizeof(digest)) != 0)
        return -EBADMSG;
    *ret_len = h.len;
    *ret = rr_take(image);
    return 0;
}

/* Our own one; a descriptor. */
static int open_entry(const char *dir, const uint8_t key[RR_DIGEST_BYTES])
{
    __attribute__((cleanup(rr_free_cleanup))) char *path = NULL;
    int fd, r = rr_cache_path(dir, key, &path);
    struct stat st;

    if (r < 0)
        return r;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? -ENOENT : -EBADMSG;
    if (fstat(fd, &st) < 0 || st.st_uid != geteuid()) {
        close(fd);
        return -EBADMSG;
    }
    return fd;
}

int rr_cache_load(const char *dir, const uint8_t key[RR_DIGEST_BYTES], uint8_t **ret,
                  size_t *ret_len)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = open_entry(dir, key);

    return fd < 0 ? fd : rr_cache_load_fd(fd, key, ret, ret_len);
}

static int module_key(int fd, uint64_t max, const char *engine_version,
                      uint8_t ret[RR_DIGEST_BYTES])
{
    uint8_t module[RR_DIGEST_BYTES], platform[RR_DIGEST_BYTES];
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0 || lseek(fd, 0, SEEK_SET) < 0)
        return -errno;
    if ((uint64_t)st.st_size > max)
        return -EFBIG;
    r = digest_fd(fd, (uint64_t)st.st_size, module);
    if (r < 0)
        return r;
    rr_cache_platform(engine_version, platform);
    rr_cache_key(module, platform, ret);
    return 0;
}

int rr_cache_open(int module_fd, uint64_t max, const char *engine_version)
{
    __attribute__((cleanup(rr_free_cleanup))) char *dir = NULL;
    uint8_t key[RR_DIGEST_BYTES], image[RR_DIGEST_BYTES];
    struct entry_header h;
    int fd, r = rr_cache_dir(&dir);

    if (r == 0)
        r = module_key(module_fd, max, engine_version, key);
    if (r < 0)
        return r;
    fd = open_entry(dir, key);
    if (fd < 0)
        return fd;
    r = read_header(fd, key, &h);
    if (r == 0)
        r = digest_fd(fd, h.len, image);
    if (r == 0 && (memcmp(image, h.image, sizeof(image)) != 0 || lseek(fd, 0, SEEK_SET) < 0))
        r = -EBADMSG;
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

int rr_cache_store(const char *dir, const uint8_t key[RR_DIGEST_BYTES], const uint8_t *image,
                   size_t len)
{
    __attribute__((cleanup(rr_free_cleanup))) char *path = NULL, *tmp = NULL;
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;
    struct entry_header h = {.magic = MAGIC, .len = len};
    int r = rr_cache_path(dir, key, &path);

    if (r < 0)
        return r;
    memcpy(h.key, key, sizeof(h.key));
    rr_digest(image, len, NULL, 0, h.image);
    if (asprintf(&tmp, "%s/.new-XXXXXX", dir) < 0)
        return -ENOMEM;
    fd = mkostemp(tmp, O_CLOEXEC); /* mode 0600 */
    if (fd < 0)
        return -errno;
    r = rr_write_all(fd, &h, sizeof(h));
    if (r == 0)
        r = rr_write_all(fd, image, len);
    if (r == 0 && rename(tmp, path) < 0)
        r = -errno;
    if (r < 0)
        unlink(tmp);
    return r;
}
