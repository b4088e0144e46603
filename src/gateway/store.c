/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asynchronous messages on disk: a SQLite database with a row for each, and a file for each long
 * payload. A commit returns when it is on the disk; many calls share one. A file is there before
 * its row, and goes after it, so a row never lacks its file; files without a row are removed at the
 * start.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "gateway/async.h"

#define DATABASE "queue.db"
#define APPLICATION 0x52527175 /* "RRqu" */
#define VERSION 1
#define MAX_COUNT 1000000000
#define MAX_TIME_MS 253402300799999                /* the end of the year 9999 */
#define MAX_META ((size_t)2 * RR_ABI_MAX_METADATA) /* of a request, with what is added to it */

enum {
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_INSERT,
    SQL_PROGRESS,
    SQL_FINISH,
    SQL_REMOVE,
    SQL_LOAD,
    SQL_LOAD_RESULT,
    SQL_EVENT,
    N_SQL
};

static const char *const statements[N_SQL] = {
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "INSERT INTO calls(id,state,attempts,failures,posts,due,created,callback,meta,body_bytes,body)"
    " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
    "UPDATE calls SET state=?2,attempts=?3,failures=?4,posts=?5,due=?6,status=?7,error=?8"
    " WHERE id=?1",
    "UPDATE calls SET state=?2,attempts=?3,failures=?4,posts=?5,due=?6,status=?7,error=?8,"
    "result_meta=?9,result_bytes=?10,result=?11,"
    "body_bytes=CASE WHEN ?12 THEN body_bytes END,body=CASE WHEN ?12 THEN body END WHERE id=?1",
    "DELETE FROM calls WHERE id=?1",
    "SELECT meta,body,body_bytes FROM calls WHERE id=?1",
    "SELECT result_meta,result,result_bytes FROM calls WHERE id=?1",
    "INSERT OR REPLACE INTO events(key,ms) VALUES(?1,?2)",
};

static const char schema[] =
    "PRAGMA application_id=1381134709;"
    "CREATE TABLE calls(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state INTEGER NOT NULL,"
    " attempts INTEGER NOT NULL, failures INTEGER NOT NULL, posts INTEGER NOT NULL,"
    " due INTEGER NOT NULL, created INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 0,"
    " error TEXT, callback TEXT, meta BLOB, body_bytes INTEGER, body BLOB,"
    " result_meta BLOB, result_bytes INTEGER, result BLOB);"
    "CREATE TABLE events(key BLOB PRIMARY KEY, ms INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX events_ms ON events(ms);"
    "PRAGMA user_version=1;";

struct store {
    char *path;
    int dir_fd;
    sqlite3 *db;
    sqlite3_stmt *sql[N_SQL];
    char why[160];
};

/* --- files ----------------------------------------------------------------------------------- */

static void file_name(const char *id, bool result, char ret[CALL_ID + 8])
{
    snprintf(ret, CALL_ID + 8, "%.*s.%s", CALL_ID, id, result ? "out" : "in");
}

int rr_store_write(const struct store *s, const char *id, bool result, const void *data,
                   uint64_t len)
{
    char name[CALL_ID + 8];
    int fd, r;

    file_name(id, result, name);
    fd = openat(s->dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    r = rr_write_all(fd, data, len);
    if (r == 0 && fdatasync(fd) < 0)
        r = -errno;
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r == 0 && fsync(s->dir_fd) < 0)
        r = -errno;
    if (r)
        unlinkat(s->dir_fd, name, 0);
    return r;
}

void rr_store_unlink(const struct store *s, const char *id, bool result)
{
    char name[CALL_ID + 8];

    file_name(id, result, name);
    if (unlinkat(s->dir_fd, name, 0) < 0 && errno != ENOENT)
        rr_log(1, "%s/%s cannot be removed: %s", s->path, name, strerror(errno));
}

int rr_store_open_file(const struct store *s, const char *id, bool result, uint64_t len)
{
    char name[CALL_ID + 8];
    struct stat st;
    int fd;

    file_name(id, result, name);
    fd = openat(s->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == len)
        return fd;
    close(fd);
    return -EIO;
}

/* Left by a server that ended between a file and its row, or between a row's end and its file's. */
static void remove_orphans(struct store *s)
{
    int fd = openat(s->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    sqlite3_stmt *q = NULL;
    const struct dirent *e;

    if (!dir) {
        if (fd >= 0)
            close(fd);
        return;
    }
    sqlite3_prepare_v2(s->db,
                       "SELECT 1 FROM calls WHERE id=?1 AND ((?2 AND result_bytes>?3)"
                       " OR (NOT ?2 AND body_bytes>?3))",
                       -1, &q, NULL);
    while (q && (e = readdir(dir))) {
        size_t len = strlen(e->d_name);
        bool result = len == CALL_ID + 4 && strcmp(e->d_name + CALL_ID, ".out") == 0;

        if (!result && !(len == CALL_ID + 3 && strcmp(e->d_name + CALL_ID, ".in") == 0))
            continue;
        sqlite3_bind_text(q, 1, e->d_name, CALL_ID, SQLITE_TRANSIENT);
        sqlite3_bind_int(q, 2, result);
        sqlite3_bind_int(q, 3, CALL_INLINE);
        if (sqlite3_step(q) == SQLITE_DONE)
            unlinkat(s->dir_fd, e->d_name, 0);
        sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    closedir(dir);
}

/* --- opening --------------------------------------------------------------------------------- */

static int open_folder(struct store *s, struct rr_error *err)
{
    struct stat st;

    if (mkdir(s->path, 0700) < 0 && errno != EEXIST)
        return rr_error_set(
            err, RR_E_OUTPUT, "create the folder that it lies in, or correct `path`",
            "the queue's folder %.300s cannot be made: %s", s->path, strerror(errno));
    s->dir_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir_fd < 0 || fstat(s->dir_fd, &st) < 0)
        return rr_error_set(err, RR_E_OUTPUT, "name a folder that you may write to",
                            "the queue's folder %.300s cannot be opened: %s", s->path,
                            strerror(errno));
    if (st.st_uid != geteuid() || (st.st_mode & 022))
        return rr_error_set(err, RR_E_OUTPUT, "run `chown` and `chmod go-w` on it",
                            "the queue's folder %.300s belongs to others, or they may write to it",
                            s->path);
    return 0;
}

static int corrupt(struct store *s, const char *what, struct rr_error *err)
{
    return rr_error_set(err, RR_E_INVALID,
                        "restore the folder from a backup; or move it away, which gives up the "
                        "messages in it: `sqlite3 queue.db .recover` shows what can be read",
                        "the queue in %.300s is damaged: %.200s", s->path, what);
}

static int failed(struct store *s, const char *what, struct rr_error *err)
{
    int code = sqlite3_errcode(s->db);

    if (code == SQLITE_BUSY || code == SQLITE_LOCKED)
        return rr_error_set(err, RR_E_OUTPUT, "stop the other one, or give each a folder",
                            "another server uses the queue in %.300s", s->path);
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB)
        return corrupt(s, sqlite3_errmsg(s->db), err);
    return rr_error_set(err, RR_E_OUTPUT, "look at the folder, its rights and its disk",
                        "the queue in %.300s cannot be opened (%s): %.200s", s->path, what,
                        sqlite3_errmsg(s->db));
}

static int number_of(struct store *s, const char *sql, int64_t *ret)
{
    sqlite3_stmt *q = NULL;
    int r = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);

    if (r == SQLITE_OK && (r = sqlite3_step(q)) == SQLITE_ROW) {
        *ret = sqlite3_column_int64(q, 0);
        r = SQLITE_OK;
    }
    sqlite3_finalize(q);
    return r;
}

static int check_pages(struct store *s, struct rr_error *err)
{
    sqlite3_stmt *q = NULL;
    const char *text = NULL;
    int r = 0;

    if (sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &q, NULL) == SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW)
        text = (const char *)sqlite3_column_text(q, 0);
    if (!text)
        r = failed(s, "checking it", err);
    else if (strcmp(text, "ok") != 0)
        r = corrupt(s, text, err);
    sqlite3_finalize(q);
    return r;
}

static int open_schema(struct store *s, struct rr_error *err)
{
    int64_t version = 0, application = 0, tables = 0;

    if (number_of(s, "PRAGMA user_version", &version) ||
        number_of(s, "PRAGMA application_id", &application) ||
        number_of(s, "SELECT count(*) FROM sqlite_master", &tables))
        return failed(s, "reading it", err);
    if (tables == 0 && version == 0) {
        if (sqlite3_exec(s->db, "BEGIN EXCLUSIVE", NULL, NULL, NULL) ||
            sqlite3_exec(s->db, schema, NULL, NULL, NULL) ||
            sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL))
            return failed(s, "making it", err);
        return 0;
    }
    if (application != APPLICATION)
        return corrupt(s, "it is the database of another program", err);
    if (version != VERSION)
        return rr_error_set(err, RR_E_INVALID, "let the roadrunner that wrote it finish it",
                            "the queue in %.300s has version %lld, and this roadrunner knows %d",
                            s->path, (long long)version, VERSION);
    return check_pages(s, err);
}

static int open_database(struct store *s, struct rr_error *err)
{
    char *name = NULL;
    int r, fd;

    if (asprintf(&name, "%s/%s", s->path, DATABASE) < 0)
        return rr_error_no_memory(err);
    /* Requests may hold what is not for others; SQLite gives its other files the same mode. */
    fd = openat(s->dir_fd, DATABASE, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    r = sqlite3_open_v2(name, &s->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    free(name);
    if (r)
        return failed(s, "opening it", err);
    sqlite3_busy_timeout(s->db, 2000); /* one that is just ending */
    /* Exclusive: one server, and no file in shared memory. Full: a commit is on the disk. */
    if (sqlite3_exec(
            s->db,
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;"
            "PRAGMA synchronous=FULL; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON",
            NULL, NULL, NULL))
        return failed(s, "setting it up", err);
    r = open_schema(s, err);
    for (int n = 0; n < N_SQL && r == 0; n++)
        if (sqlite3_prepare_v3(s->db, statements[n], -1, SQLITE_PREPARE_PERSISTENT, &s->sql[n],
                               NULL))
            r = corrupt(s, sqlite3_errmsg(s->db), err);
    return r;
}

int rr_store_open(const char *path, struct store **ret, struct rr_error *err)
{
    struct store *s = calloc(1, sizeof(*s));
    int r;

    if (!s)
        return rr_error_no_memory(err);
    s->dir_fd = -1;
    s->path = strdup(path);
    r = s->path ? open_folder(s, err) : rr_error_no_memory(err);
    if (r == 0 && s->dir_fd >= 0)
        r = open_database(s, err);
    if (r || s->dir_fd < 0) {
        rr_store_close(s);
        return r;
    }
    if (fsync(s->dir_fd) < 0) /* the database's name */
        rr_log(1, "%s cannot be made durable: %s", s->path, strerror(errno));
    remove_orphans(s);
    *ret = s;
    return 0;
}

void rr_store_close(struct store *s)
{
    if (!s)
        return;
    for (int n = 0; n < N_SQL; n++)
        sqlite3_finalize(s->sql[n]);
    sqlite3_close(s->db);
    if (s->dir_fd >= 0)
        close(s->dir_fd);
    free(s->path);
    free(s);
}

/* --- reading --------------------------------------------------------------------------------- */

static bool id_ok(const unsigned char *id, int len)
{
    for (int n = 0; n < len; n++)
        if (!(id[n] >= '0' && id[n] <= '9') && !(id[n] >= 'a' && id[n] <= 'f'))
            return false;
    return len == CALL_ID;
}

/* A payload that stays where it is. NULL: there is none, or with @ret_bad no memory. */
static struct blob *absent(sqlite3_stmt *q, int column, bool *bad)
{
    struct blob *b;
    int64_t len = sqlite3_column_int64(q, column);

    if (sqlite3_column_type(q, column) == SQLITE_NULL)
        return NULL;
    if (len < 0 || len > (int64_t)RR_SLOT_LARGE || !(b = rr_blob_absent((uint64_t)len))) {
        *bad = true;
        return NULL;
    }
    return b;
}

/* A count of ours; false: it makes no sense. */
static bool read_count(sqlite3_stmt *q, int column, unsigned int *ret)
{
    int64_t n = sqlite3_column_int64(q, column);

    if (n < 0 || n > MAX_COUNT)
        return false;
    *ret = (unsigned int)n;
    return true;
}

static bool read_text(sqlite3_stmt *q, int column, size_t max, const char **ret)
{
    const char *text = (const char *)sqlite3_column_text(q, column);

    if (text && strlen(text) > max)
        return false;
    *ret = text;
    return true;
}

/* What a server writes, and no other: times that have a date, states that follow from others. */
static bool read_numbers(sqlite3_stmt *q, struct call *c)
{
    int64_t state = sqlite3_column_int64(q, 1), due = sqlite3_column_int64(q, 5),
            status = sqlite3_column_int64(q, 7);

    c->created_ms = sqlite3_column_int64(q, 6);
    if (state < 0 || state > CALL_FAILED || due < 0 || due > MAX_TIME_MS || c->created_ms < 0 ||
        c->created_ms > MAX_TIME_MS || (status != 0 && (status < 100 || status > 599)))
        return false;
    c->state = (enum call_state)state;
    c->due_ns = (uint64_t)due;
    c->status = (int)status;
    return read_count(q, 2, &c->attempts) && read_count(q, 3, &c->failures) &&
           read_count(q, 4, &c->posts) && c->failures <= c->attempts;
}

static struct call *read_row(sqlite3_stmt *q)
{
    struct call *c = calloc(1, sizeof(*c));
    const unsigned char *id = sqlite3_column_text(q, 0);
    const char *error, *callback;
    bool bad = false;

    if (!c || !id || !id_ok(id, sqlite3_column_bytes(q, 0)) || !read_numbers(q, c) ||
        !read_text(q, 8, sizeof(c->error) - 1, &error) ||
        !read_text(q, 9, CALL_MAX_URL, &callback)) {
        free(c);
        return NULL;
    }
    memcpy(c->id, id, CALL_ID);
    if (error)
        snprintf(c->error, sizeof(c->error), "%s", error);
    if (callback && !(c->callback = strdup(callback)))
        bad = true;
    c->body = absent(q, 10, &bad);
    c->result = absent(q, 11, &bad);
    c->stored = true;
    c->finished = c->state > CALL_RUNNING;
    c->body_file = c->body && c->body->len > CALL_INLINE;
    c->result_file = c->result && c->result->len > CALL_INLINE;
    if (bad || (!c->body && c->state <= CALL_BURYING) ||
        (c->state == CALL_POSTING && (!c->callback || !c->result))) {
        rr_call_free(c);
        return NULL;
    }
    return c;
}

int rr_store_recover(struct store *s, void *user, void (*take)(void *user, struct call *c),
                     struct rr_error *err)
{
    sqlite3_stmt *q = NULL;
    int r;

    if (sqlite3_prepare_v2(s->db,
                           "SELECT id,state,attempts,failures,posts,due,created,status,error,"
                           "callback,body_bytes,result_bytes FROM calls ORDER BY seq",
                           -1, &q, NULL))
        return failed(s, "reading it", err);
    while ((r = sqlite3_step(q)) == SQLITE_ROW) {
        struct call *c = read_row(q);
        const struct blob *b = c ? (c->state <= CALL_BURYING ? c->body : c->result) : NULL;
        int fd = 0;

        if (c && b && b->len > CALL_INLINE) {
            fd = rr_store_open_file(s, c->id, b == c->result, b->len);
            if (fd >= 0)
                close(fd);
        }
        if (!c || fd < 0) {
            rr_call_free(c);
            sqlite3_finalize(q);
            return corrupt(s,
                           c ? "the file of a message is missing or has another length"
                             : "a message makes no sense",
                           err);
        }
        take(user, c);
    }
    sqlite3_finalize(q);
    return r == SQLITE_DONE ? 0 : failed(s, "reading it", err);
}

int rr_store_events(struct store *s, int64_t since_ms, void *user,
                    void (*take)(void *user, const uint8_t key[32], int64_t ms))
{
    sqlite3_stmt *q = NULL;
    char sql[80];
    int r = SQLITE_DONE;

    snprintf(sql, sizeof(sql), "DELETE FROM events WHERE ms<%lld", (long long)since_ms);
    if (sqlite3_exec(s->db, sql, NULL, NULL, NULL) ||
        (take && sqlite3_prepare_v2(s->db, "SELECT key,ms FROM events ORDER BY ms", -1, &q, NULL)))
        return RR_E_SYSTEM;
    while (q && (r = sqlite3_step(q)) == SQLITE_ROW)
        if (sqlite3_column_bytes(q, 0) == 32)
            take(user, sqlite3_column_blob(q, 0), sqlite3_column_int64(q, 1));
    sqlite3_finalize(q);
    return r == SQLITE_DONE ? 0 : RR_E_SYSTEM;
}

static uint8_t *copy_of(sqlite3_stmt *q, int column, size_t *ret_len)
{
    int len = sqlite3_column_bytes(q, column);
    uint8_t *copy = malloc(len > 0 ? (size_t)len : 1);

    if (copy && len > 0)
        memcpy(copy, sqlite3_column_blob(q, column), (size_t)len);
    *ret_len = len > 0 ? (size_t)len : 0;
    return copy;
}

int rr_store_load(struct store *s, struct call *c, bool result)
{
    sqlite3_stmt *q = s->sql[result ? SQL_LOAD_RESULT : SQL_LOAD];
    struct blob *b = result ? c->result : c->body;
    uint8_t **meta = result ? &c->result_meta : &c->meta;
    size_t *meta_len = result ? &c->result_meta_len : &c->meta_len, len = 0;
    int r = -EIO;

    sqlite3_bind_text(q, 1, c->id, CALL_ID, SQLITE_STATIC);
    if (sqlite3_step(q) == SQLITE_ROW) {
        r = 0;
        if (!*meta && !(*meta = copy_of(q, 0, meta_len)))
            r = -ENOMEM;
        if (r == 0 && (*meta_len > MAX_META || !rr_meta_is_sound(*meta, *meta_len))) {
            free(rr_take(*meta));
            *meta_len = 0;
            r = -EBADMSG;
        }
        if (r == 0 && b && !b->data && b->len <= CALL_INLINE) {
            b->data = copy_of(q, 1, &len);
            if (!b->data || len != b->len) {
                r = b->data ? -EIO : -ENOMEM;
                free(rr_take(b->data));
            }
        }
    }
    sqlite3_reset(q);
    if (r == 0 && b && !b->data && b->fd < 0) {
        int fd = rr_store_open_file(s, c->id, result, b->len);

        if (fd < 0)
            r = fd;
        else
            b->fd = fd;
    }
    if (r)
        snprintf(s->why, sizeof(s->why), "%s", strerror(-r));
    return r ? RR_E_SYSTEM : 0;
}

/* --- writing --------------------------------------------------------------------------------- */

const char *rr_store_why(const struct store *s)
{
    return s->why;
}

static int step(struct store *s, int n)
{
    int r = sqlite3_step(s->sql[n]);

    if (r != SQLITE_DONE && r != SQLITE_ROW)
        snprintf(s->why, sizeof(s->why), "%s", sqlite3_errmsg(s->db));
    sqlite3_reset(s->sql[n]);
    return r == SQLITE_DONE || r == SQLITE_ROW ? 0 : RR_E_SYSTEM;
}

int rr_store_begin(struct store *s)
{
    return step(s, SQL_BEGIN);
}

int rr_store_commit(struct store *s)
{
    return step(s, SQL_COMMIT);
}

/* Some failures have rolled it back already. */
void rr_store_rollback(struct store *s)
{
    if (!sqlite3_get_autocommit(s->db)) {
        sqlite3_step(s->sql[SQL_ROLLBACK]);
        sqlite3_reset(s->sql[SQL_ROLLBACK]);
    }
}

/* A payload's length and, if it is short, itself. */
static void bind_blob(sqlite3_stmt *q, int at, const struct blob *b)
{
    if (b)
        sqlite3_bind_int64(q, at, (int64_t)b->len);
    else
        sqlite3_bind_null(q, at);
    if (b && b->data && b->len <= CALL_INLINE)
        sqlite3_bind_blob(q, at + 1, b->data, (int)b->len, SQLITE_STATIC);
    else
        sqlite3_bind_null(q, at + 1);
}

static int insert(struct store *s, const struct call *c, sqlite3_stmt *q)
{
    int r;

    sqlite3_bind_int64(q, 7, c->created_ms);
    if (c->callback)
        sqlite3_bind_text(q, 8, c->callback, -1, SQLITE_STATIC);
    else
        sqlite3_bind_null(q, 8);
    sqlite3_bind_blob(q, 9, c->meta, (int)c->meta_len, SQLITE_STATIC);
    bind_blob(q, 10, c->body);
    r = step(s, SQL_INSERT);
    if (r == 0 && c->has_event) {
        sqlite3_bind_blob(s->sql[SQL_EVENT], 1, c->event, sizeof(c->event), SQLITE_STATIC);
        sqlite3_bind_int64(s->sql[SQL_EVENT], 2, c->created_ms);
        r = step(s, SQL_EVENT);
    }
    return r;
}

int rr_store_put(struct store *s, struct call *c, int64_t due_ms)
{
    /* A result that is not in memory is in the store already. */
    bool whole = c->finished && (!c->result || c->result->data || c->result->len > CALL_INLINE) &&
                 c->result_meta;
    int n = !c->stored ? SQL_INSERT : whole ? SQL_FINISH : SQL_PROGRESS;
    sqlite3_stmt *q = s->sql[n];

    sqlite3_clear_bindings(q);
    sqlite3_bind_text(q, 1, c->id, CALL_ID, SQLITE_STATIC);
    sqlite3_bind_int(q, 2, c->state);
    sqlite3_bind_int64(q, 3, c->attempts);
    sqlite3_bind_int64(q, 4, c->failures);
    sqlite3_bind_int64(q, 5, c->posts);
    sqlite3_bind_int64(q, 6, due_ms);
    if (n == SQL_INSERT)
        return insert(s, c, q);
    sqlite3_bind_int(q, 7, c->status);
    sqlite3_bind_text(q, 8, c->error, -1, SQLITE_STATIC);
    if (n == SQL_FINISH) {
        sqlite3_bind_blob(q, 9, c->result_meta, (int)c->result_meta_len, SQLITE_STATIC);
        bind_blob(q, 10, c->result);
        sqlite3_bind_int(q, 12, c->body != NULL);
    }
    return step(s, n);
}

int rr_store_remove(struct store *s, const struct call *c)
{
    sqlite3_bind_text(s->sql[SQL_REMOVE], 1, c->id, CALL_ID, SQLITE_STATIC);
    return step(s, SQL_REMOVE);
}
