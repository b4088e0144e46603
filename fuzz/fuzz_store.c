/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A queue on disk as a server finds it at its start. The input is either a row of `calls`, a value
 * of any type for each column, or, after a zero, the database file itself.
 */
#include <errno.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/async.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#define N_COLUMNS 16
#define ID "0123456789abcdef0123456789abcdef"

static char folder[64], database[80];

struct input {
    const uint8_t *at;
    size_t len;
};

static uint8_t byte(struct input *in)
{
    if (!in->len)
        return 0;
    in->len--;
    return *in->at++;
}

/* So much of it, as it is there. */
static const uint8_t *bytes(struct input *in, size_t *len)
{
    const uint8_t *at = in->at;

    *len = rr_min(*len, in->len);
    in->at += *len;
    in->len -= *len;
    return at;
}

static void bind(sqlite3_stmt *q, int column, struct input *in)
{
    static const uint8_t meta[] = {4, 0, 0, 0, 1, 0, 0, 0, 'n', 'a', 'm', 'e', 'x'};
    size_t len = byte(in) % 8;
    int64_t number = 0;
    const uint8_t *at;

    switch (len) {
    case 0:
        break; /* NULL, as by default */
    case 1:
        sqlite3_bind_int(q, column, byte(in));
        break;
    case 2:
        len = sizeof(number);
        at = bytes(in, &len);
        memcpy(&number, at, len);
        sqlite3_bind_int64(q, column, number);
        break;
    case 3:
        sqlite3_bind_text(q, column, ID, -1, SQLITE_STATIC);
        break;
    case 4:
        sqlite3_bind_blob(q, column, meta, sizeof(meta), SQLITE_STATIC);
        break;
    case 5:
        sqlite3_bind_zeroblob(q, column, byte(in) * 256);
        break;
    default:
        number = (int64_t)len;
        len = byte(in);
        at = bytes(in, &len);
        if (number == 6)
            sqlite3_bind_text(q, column, (const char *)at, (int)len, SQLITE_TRANSIENT);
        else
            sqlite3_bind_blob(q, column, at, (int)len, SQLITE_TRANSIENT);
    }
}

static void clean(void)
{
    static const char *const files[] = {"queue.db",     "queue.db-wal", "queue.db-journal",
                                        "queue.db-shm", ID ".in",       ID ".out"};
    char name[128];

    for (size_t n = 0; n < RR_ARRAY_LEN(files); n++) {
        snprintf(name, sizeof(name), "%s/%s", folder, files[n]);
        if (unlink(name) < 0 && errno != ENOENT)
            abort();
    }
}

static void end(void)
{
    clean();
    rmdir(folder);
}

/* An empty queue, made by the code under test. */
static void start(void)
{
    const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

    snprintf(folder, sizeof(folder), "%s/rr-fuzz-XXXXXX", tmp);
    if (!mkdtemp(folder))
        abort();
    snprintf(database, sizeof(database), "%s/queue.db", folder);
    atexit(end);
}

static void put_file(const char *name, const void *data, size_t len)
{
    FILE *f = fopen(name, "w");

    if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0)
        abort();
}

static void put_row(struct input *in)
{
    struct store *s;
    struct rr_error err;
    sqlite3 *db;
    sqlite3_stmt *q;
    char name[128];

    if (rr_store_open(folder, &s, &err))
        abort();
    rr_store_close(s);
    if (byte(in) & 1) { /* a long payload */
        snprintf(name, sizeof(name), "%s/" ID ".in", folder);
        put_file(name, in->at, rr_min(in->len, 8));
        if (truncate(name, 20000) < 0)
            abort();
    }
    if (sqlite3_open(database, &db) ||
        sqlite3_exec(db, "PRAGMA synchronous=OFF", NULL, NULL, NULL) ||
        sqlite3_prepare_v2(db, "INSERT INTO calls VALUES(1,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", -1,
                           &q, NULL))
        abort();
    for (int n = 1; n <= N_COLUMNS; n++)
        bind(q, n, in);
    sqlite3_step(q); /* some are refused: NOT NULL */
    sqlite3_finalize(q);
    sqlite3_close(db);
}

static void look_at(struct store *s, struct call *c, bool result)
{
    struct rr_text key, value;
    const uint8_t *meta;
    size_t len, seen = 0;

    if (rr_store_load(s, c, result))
        return;
    meta = result ? c->result_meta : c->meta;
    len = result ? c->result_meta_len : c->meta_len;
    for (size_t at = 0; rr_meta_next(meta, len, &at, &key, &value); seen = at)
        if (!key.len)
            abort();
    if (seen != len)
        abort();
    if (!result && c->body && c->body->len && c->body->fd < 0 && !c->body->data)
        abort();
}

static void take(void *user, struct call *c)
{
    struct call **list = user;

    if (strlen(c->id) != CALL_ID || c->state > CALL_FAILED || c->failures > c->attempts ||
        (c->status && (c->status < 100 || c->status > 599)) || c->created_ms < 0 ||
        (c->callback && strlen(c->callback) > CALL_MAX_URL) ||
        (c->body && c->body->len > RR_SLOT_LARGE) || (c->state <= CALL_BURYING && !c->body))
        abort();
    c->next = *list;
    *list = c;
}

static void take_event(void *user, const uint8_t key[32], int64_t ms)
{
    *(int64_t *)user += key[0] + key[31] + (ms & 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {data, len};
    struct call *list = NULL;
    struct store *s;
    struct rr_error err;
    int64_t sum = 0;

    rr_log_set_level(-1);
    if (!folder[0])
        start();
    clean();
    if (len && data[0] == 0)
        put_file(database, data + 1, len - 1);
    else
        put_row(&in);
    if (rr_store_open(folder, &s, &err))
        return 0;
    rr_store_recover(s, &list, take, &err);
    while (list) {
        struct call *c = list;

        list = c->next;
        look_at(s, c, false);
        look_at(s, c, true);
        if (rr_store_begin(s) == 0 && (rr_store_put(s, c, 0) || rr_store_commit(s)))
            rr_store_rollback(s);
        if (rr_store_remove(s, c) == 0 && c->body_file)
            rr_store_unlink(s, c->id, false);
        rr_call_free(c);
    }
    rr_store_events(s, 1, &sum, take_event);
    rr_store_close(s);
    return 0;
}
