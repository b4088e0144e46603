/* SPDX-License-Identifier: Apache-2.0 */
/* Instances, and the messages that lie in their windows. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/internal.h"

/* fresh instances of a function made ahead, and those of a worker not yet destroyed */
#define AHEAD 8
#define LIGHT_BYTES (4u << 20)
#define STALE_NS 1000000000u /* it may have read the clock when it started */

struct held *rr_held_find(struct instance *i, uint32_t addr)
{
    for (size_t n = 0; n < i->n_held; n++)
        if (i->held[n].addr == addr)
            return &i->held[n];
    return NULL;
}

struct held *rr_held_add(struct instance *i, struct message *m, uint32_t addr, uint64_t cap)
{
    if (i->n_held == i->room) {
        size_t room = i->room ? 2 * i->room : 8;
        struct held *held = reallocarray(i->held, room, sizeof(*held));

        if (!held)
            return NULL;
        i->held = held;
        i->room = room;
    }
    i->held[i->n_held] = (struct held){.m = m, .addr = addr, .cap = cap, .port = ""};
    return &i->held[i->n_held++];
}

/* The order of inputs stays. */
void rr_held_remove(struct instance *i, struct held *h)
{
    size_t at = (size_t)(h - i->held);

    i->n_held--;
    memmove(h, h + 1, (i->n_held - at) * sizeof(*h));
}

static bool window_free(const struct instance *i, uint64_t from, uint64_t slot_bytes)
{
    for (size_t n = 0; n < i->n_held; n++) {
        const struct message *m = i->held[n].m;

        if (from < m->window + m->slot_bytes && m->window < from + slot_bytes)
            return false;
    }
    return true;
}

uint64_t rr_window_find(const struct instance *i, uint64_t preferred, uint64_t slot_bytes)
{
    uint64_t half = RR_WINDOW_BASE + (preferred - RR_WINDOW_BASE) / RR_SLOT_LARGE * RR_SLOT_LARGE;
    uint64_t other = half == RR_WINDOW_BASE ? half + RR_SLOT_LARGE : RR_WINDOW_BASE;

    if (window_free(i, preferred, slot_bytes))
        return preferred;
    /* in the same half first: the other may be wanted as a whole */
    for (uint64_t at = half; at < half + RR_SLOT_LARGE; at += slot_bytes)
        if (window_free(i, at, slot_bytes))
            return at;
    for (uint64_t at = other; at < other + RR_SLOT_LARGE; at += slot_bytes)
        if (window_free(i, at, slot_bytes))
            return at;
    return 0;
}

static int no_window(const struct message *m, const char *port, struct rr_error *err)
{
    return rr_error_set(
        err, RR_E_LIMIT, "lower `max` to 64MiB on edges that allow it, or drop what was kept",
        "a message of %s for its port '%s' finds no free window", rr_bytes_text(m->len), port);
}

/* Two messages of one address meet when a fan-out's receivers forward theirs to one function. */
static void warn_moved(struct instance *i, const struct message *m, const char *port)
{
    struct fn *f = &i->w->fns[i->fn];

    if (m->fixed && !f->warned)
        rr_log(1,
               "function '%s' gets a message on port '%s' at another address than it had, which "
               "another input has: pointers in it are not valid",
               f->spec->name, port);
    f->warned = f->warned || m->fixed;
}

static int map_region(struct instance *i, struct message *m, uint8_t *window, struct rr_error *err)
{
    struct rr_region *view;
    int r;

    rr_instance_map(i->guest.inst);
    if (m->patched) {
        r = rr_message_regather(i->w->arena, m, RR_ANON, err);
        if (r)
            return r;
        m->path = RR_PATH_COPY;
        return rr_region_move(m->region, window, m->len, err);
    }
    if (rr_region_backing(m->region) == RR_MEMFD && rr_region_shared(m->region)) {
        r = rr_region_view(m->region, window, m->offset + m->len, &view, err);
        if (r)
            return r;
        rr_region_put(m->region);
        m->region = view;
        m->path = RR_PATH_VIEW;
        return 0;
    }
    if (m->path != RR_PATH_COPY)
        m->path = RR_PATH_MOVE;
    return rr_region_move(m->region, window, m->offset + m->len, err);
}

int rr_deliver(struct instance *i, struct message *m, const char *port, struct rr_error *err)
{
    uint64_t window = rr_window_find(i, m->window, m->slot_bytes);
    uint8_t *base = rr_instance_memory(i->guest.inst);
    struct held *h;
    int r = 0;

    if (!window)
        return no_window(m, port, err);
    h = rr_held_add(i, m, (uint32_t)window, m->len);
    if (!h)
        return rr_error_no_memory(err);
    if (m->small) {
        rr_instance_touch(i->guest.inst, (uint32_t)window, m->len);
        memcpy(base + window, m->small->data, m->len);
        m->copied_bytes += m->len;
        m->path = RR_PATH_COPY;
    } else {
        r = map_region(i, m, base + window, err);
    }
    if (r) {
        rr_held_remove(i, h);
        return r;
    }
    if (window != m->window)
        warn_moved(i, m, port);
    m->window = window;
    h->addr = (uint32_t)(window + m->offset);
    h->port = port;
    h->input = true;
    return 0;
}

static void drop_held(struct instance *i, bool all)
{
    size_t kept = 0;

    for (size_t n = 0; n < i->n_held; n++) {
        if (!all && i->held[n].kept) {
            i->held[n].input = false; /* message_input() lists what is new */
            i->held[kept++] = i->held[n];
        } else {
            rr_message_free(i->held[n].m);
        }
    }
    i->n_held = kept;
}

/* What it holds of others'. */
static void let_go(struct instance *i)
{
    drop_held(i, true);
    rr_staged_drop(i);
    rr_message_free(rr_take(i->reply));
    rr_message_free(rr_take(i->out));
}

void rr_instance_destroy(struct instance *i)
{
    if (!i)
        return;
    let_go(i);
    rr_instance_free(i->guest.inst);
    free(i->held);
    free(i);
}

/* It has served. */
static void spend(struct instance *i)
{
    struct rr_worker *w = i->w;
    struct fn *f = &w->fns[i->fn];

    f->light = f->light && rr_instance_heap_bytes(i->guest.inst) <= LIGHT_BYTES;
    if (!w->light_ns || !f->light || w->n_spent == AHEAD) {
        rr_instance_destroy(i);
        return;
    }
    let_go(i);
    i->next = w->spent;
    w->spent = i;
    w->n_spent++;
}

void rr_instance_give(struct instance *i, bool healthy)
{
    struct fn *f = &i->w->fns[i->fn];

    rr_instance_flush_lines(i);
    if (!healthy || f->n_idle >= f->spec->instances || i->guest.tier == RR_TIER_STDIO) {
        spend(i);
        return;
    }
    drop_held(i, false);
    i->next = f->idle;
    f->idle = i;
    f->n_idle++;
}

/* A view is counted whole: its pages are the parent's, until it is written to. */
static uint64_t mapped_bytes(void *user)
{
    const struct instance *i = user;
    uint64_t sum = 0;

    for (size_t n = 0; n < i->n_held; n++) {
        const struct message *m = i->held[n].m;
        uint64_t len = m->offset + (m->len > i->held[n].cap ? m->len : i->held[n].cap);
        uint64_t resident = m->region ? rr_region_resident_bytes(m->region) : 0;

        len = rr_align_up(len, m->region ? RR_HUGE : 4096);
        sum += len > resident ? len : resident;
    }
    return sum;
}

static int create(struct rr_worker *w, int fn, uint64_t deadline_ns, struct instance **ret,
                  struct rr_error *err)
{
    struct fn *f = &w->fns[fn];
    struct instance *i = calloc(1, sizeof(*i));
    struct rr_instance_options options = {
        .memory_bytes = f->spec->memory_bytes,
        .deadline_ns = deadline_ns,
        .args = f->args,
        .env = (const char *const *)f->spec->env,
        .folders = f->folders,
        .n_folders = f->spec->n_folders,
        .fence = f->tier == RR_TIER_WINDOW,
        .output = rr_instance_output,
        .mapped = mapped_bytes,
        .user = i,
    };
    int r;

    if (!i)
        return rr_error_no_memory(err);
    i->guest = (struct rr_guest){.ops = &rr_worker_ops, .tier = f->tier};
    i->w = w;
    i->fn = fn;
    i->caller = -1;
    r = rr_instance_new(f->module, &options, &i->guest.inst, err);
    if (r == 0)
        r = rr_guest_start(&i->guest, deadline_ns, err);
    if (r) {
        rr_instance_flush_lines(i);
        rr_instance_destroy(i);
        return r;
    }
    *ret = i;
    return 0;
}

/* --- ahead of time, and behind it ------------------------------------------------------------ */

static struct instance *pop_ready(struct fn *f)
{
    struct instance *i = f->ready;

    if (!i)
        return NULL;
    f->ready = i->next;
    f->n_ready--;
    return i;
}

static void drop_ready(struct fn *f)
{
    struct instance *i;

    while ((i = pop_ready(f)))
        rr_instance_destroy(i);
}

static void note_lack(struct rr_worker *w, int fn)
{
    struct fn *f = &w->fns[fn];

    if (!w->light_ns || f->lacks || f->spec->instances || f->tier == RR_TIER_STDIO)
        return;
    f->lacks = true;
    f->next_lacking = w->first_lacking;
    w->first_lacking = fn;
}

static void make_ahead(struct rr_worker *w, int fn)
{
    struct fn *f = &w->fns[fn];
    uint64_t began = rr_now_ns();
    struct instance *i;
    struct rr_error err;

    if (create(w, fn, began + STALE_NS, &i, &err)) { /* whoever needs one will be told */
        f->light = false;
        return;
    }
    i->made_ns = rr_now_ns();
    f->light = i->made_ns - began < w->light_ns && i->n_held == 0;
    i->next = f->ready;
    f->ready = i;
    f->n_ready++;
}

void rr_worker_defer(struct rr_worker *w, uint64_t light_ns)
{
    w->light_ns = light_ns;
}

bool rr_worker_tidy(struct rr_worker *w)
{
    struct instance *i = w->spent;
    struct fn *f;

    if (i) {
        w->spent = i->next;
        w->n_spent--;
        rr_instance_destroy(i);
        return true;
    }
    if (w->first_lacking < 0)
        return false;
    f = &w->fns[w->first_lacking];
    if (f->light && f->n_ready < AHEAD)
        make_ahead(w, w->first_lacking);
    if (!f->light || f->n_ready >= AHEAD) {
        f->lacks = false;
        w->first_lacking = f->next_lacking;
    }
    return true;
}

void rr_worker_settle(struct rr_worker *w)
{
    struct instance *i;

    while ((i = w->spent)) {
        w->spent = i->next;
        rr_instance_destroy(i);
    }
    w->n_spent = 0;
    for (size_t n = 0; w->fns && n < w->wf->n_functions; n++) {
        drop_ready(&w->fns[n]);
        w->fns[n].lacks = false;
    }
    w->first_lacking = -1;
}

int rr_instance_take(struct rr_worker *w, int fn, uint64_t deadline_ns, struct instance **ret,
                     bool *ret_fresh, struct rr_error *err)
{
    struct fn *f = &w->fns[fn];
    uint64_t began;
    int r;

    *ret_fresh = !f->idle;
    if (f->idle) {
        *ret = f->idle;
        f->idle = (*ret)->next;
        f->n_idle--;
        return 0;
    }
    note_lack(w, fn);
    if (f->ready && rr_now_ns() > f->ready->made_ns + STALE_NS)
        drop_ready(f);
    *ret = pop_ready(f);
    if (*ret)
        return 0;
    began = w->light_ns ? rr_now_ns() : 0;
    r = create(w, fn, deadline_ns, ret, err);
    f->light = r == 0 && w->light_ns && rr_now_ns() - began < w->light_ns;
    return r;
}
