/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records of TLS 1.3 (RFC 8446, section 5), from the end of the handshake on. OpenSSL makes the
 * handshake and holds the certificates, libcrypto encrypts; only the framing is ours, as the
 * kernel's is with kTLS. So a payload is encrypted from its region into the buffer that is sent,
 * and decrypted from the buffer that was received into its region: libssl copies it once more on
 * either side, which took a quarter of the time.
 */
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/util.h"
#include "channel/netio.h"

#define HEADER 5
#define TAG 16
#define IV 12
#define MAX_PLAIN (1u << 14)
#define MAX_CIPHER (MAX_PLAIN + 256)
#define MAX_KEY 32
#define MAX_TICKET (1u << 17)
#define MAX_IDLE 32 /* records in a row without a byte for us */
#define ROOM_MAIN (32u << 10)
#define ROOM_EXTRA (256u << 10)
/* AES-GCM may encrypt 2^24.5 of them with one key (section 5.5) */
#ifndef RECORDS_PER_KEY /* tests have fewer */
#define RECORDS_PER_KEY (1ull << 22)
#endif

enum { ALERT = 21, HANDSHAKE = 22, DATA = 23 };
enum { CLOSE_NOTIFY = 0, USER_CANCELED = 90 };
enum { NEW_SESSION_TICKET = 4, KEY_UPDATE = 24 };

/* One direction. */
struct half {
    EVP_CIPHER_CTX *ctx;
    uint8_t secret[EVP_MAX_MD_SIZE];
    uint8_t iv[IV];
    uint64_t seq;
};

struct records {
    const EVP_CIPHER *cipher;
    const EVP_MD *md;
    uint8_t secrets[2][EVP_MAX_MD_SIZE]; /* the client's and the server's, until they are in use */
    size_t n_secret[2];
    struct half in, out;
    struct bytes raw; /* as it came */
    size_t plain;     /* bytes at the beginning of @raw that are decrypted and not yet read, */
    size_t behind;    /* and those behind that belong to the same record */
    unsigned int n_idle;
    bool ended;
    char why[100];      /* it ended, if it was not by the peer's wish */
    uint8_t message[5]; /* of the handshake message that comes: type, length, first byte */
    size_t n_message, message_left;
};

struct records *records_new(void)
{
    return calloc(1, sizeof(struct records));
}

static void half_free(struct half *h)
{
    EVP_CIPHER_CTX_free(h->ctx);
    OPENSSL_cleanse(h, sizeof(*h));
}

void records_free(struct records *t)
{
    if (!t)
        return;
    half_free(&t->in);
    half_free(&t->out);
    bytes_free(&t->raw);
    OPENSSL_cleanse(t, sizeof(*t));
    free(t);
}

/* --- keys (section 7) ------------------------------------------------------------------------ */

static int nibble(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

void records_on_secret(struct records *t, const char *line)
{
    static const char *const labels[2] = {"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "};

    for (int side = 0; side < 2; side++) {
        const char *hex;
        size_t n = 0;

        if (strncmp(line, labels[side], strlen(labels[side])) != 0)
            continue;
        hex = strchr(line + strlen(labels[side]), ' ');
        for (hex = hex ? hex + 1 : "";
             n < EVP_MAX_MD_SIZE && nibble(hex[0]) >= 0 && nibble(hex[1]) >= 0; hex += 2)
            t->secrets[side][n++] = (uint8_t)(nibble(hex[0]) << 4 | nibble(hex[1]));
        t->n_secret[side] = n;
    }
}

/* HKDF-Expand-Label() without a context. */
static bool expand(const EVP_MD *md, const uint8_t *secret, const char *label, uint8_t *ret,
                   size_t len)
{
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, OSSL_KDF_NAME_TLS1_3_KDF, NULL);
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST,
                                         (char *)(uintptr_t)EVP_MD_get0_name(md), 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret,
                                          (size_t)EVP_MD_get_size(md)),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX, (void *)(uintptr_t)"tls13 ", 6),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, (void *)(uintptr_t)label,
                                          strlen(label)),
        OSSL_PARAM_construct_end()};
    bool ok = ctx && EVP_KDF_derive(ctx, ret, len, params) == 1;

    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    return ok;
}

/* Key and IV from the secret. */
static bool half_key(struct records *t, struct half *h, bool encrypt)
{
    uint8_t key[MAX_KEY];
    bool ok = (h->ctx || (h->ctx = EVP_CIPHER_CTX_new())) &&
              expand(t->md, h->secret, "key", key, (size_t)EVP_CIPHER_get_key_length(t->cipher)) &&
              expand(t->md, h->secret, "iv", h->iv, IV) &&
              EVP_CipherInit_ex(h->ctx, t->cipher, NULL, key, NULL, encrypt) == 1;

    OPENSSL_cleanse(key, sizeof(key));
    h->seq = 0;
    return ok;
}

/* Section 7.2. */
static bool half_update(struct records *t, struct half *h, bool encrypt)
{
    uint8_t next[EVP_MAX_MD_SIZE];
    size_t n = (size_t)EVP_MD_get_size(t->md);
    bool ok = expand(t->md, h->secret, "traffic upd", next, n);

    if (ok)
        memcpy(h->secret, next, n);
    OPENSSL_cleanse(next, sizeof(next));
    return ok && half_key(t, h, encrypt);
}

bool records_begin(struct records *t, uint16_t suite, bool server)
{
    size_t n;

    switch (suite) {
    case TLS1_3_CK_AES_128_GCM_SHA256 & 0xffff:
        t->cipher = EVP_aes_128_gcm();
        t->md = EVP_sha256();
        break;
    case TLS1_3_CK_AES_256_GCM_SHA384 & 0xffff:
        t->cipher = EVP_aes_256_gcm();
        t->md = EVP_sha384();
        break;
    case TLS1_3_CK_CHACHA20_POLY1305_SHA256 & 0xffff:
        t->cipher = EVP_chacha20_poly1305();
        t->md = EVP_sha256();
        break;
    default:
        return false;
    }
    n = (size_t)EVP_MD_get_size(t->md);
    if (t->n_secret[0] != n || t->n_secret[1] != n)
        return false;
    memcpy(t->in.secret, t->secrets[!server], n);
    memcpy(t->out.secret, t->secrets[server], n);
    OPENSSL_cleanse(t->secrets, sizeof(t->secrets));
    return half_key(t, &t->in, false) && half_key(t, &t->out, true);
}

/* --- one record ------------------------------------------------------------------------------ */

static void nonce(const struct half *h, uint8_t ret[IV])
{
    memcpy(ret, h->iv, IV);
    for (int n = 0; n < 8; n++)
        ret[IV - 1 - n] ^= (uint8_t)(h->seq >> 8 * n);
}

/* Append a record to @to. */
static bool seal(struct half *h, struct bytes *to, uint8_t type, const uint8_t *from, size_t len)
{
    size_t sealed = len + 1 + TAG;
    uint8_t iv[IV], *at;
    int n;

    if (!bytes_room(to, HEADER + sealed))
        return false;
    at = to->data + to->end;
    memcpy(at, (uint8_t[HEADER]){DATA, 3, 3, (uint8_t)(sealed >> 8), (uint8_t)sealed}, HEADER);
    nonce(h, iv);
    if (EVP_EncryptInit_ex(h->ctx, NULL, NULL, NULL, iv) != 1 ||
        EVP_EncryptUpdate(h->ctx, NULL, &n, at, HEADER) != 1 ||
        (len && EVP_EncryptUpdate(h->ctx, at + HEADER, &n, from, (int)len) != 1) ||
        EVP_EncryptUpdate(h->ctx, at + HEADER + len, &n, &type, 1) != 1 ||
        EVP_EncryptFinal_ex(h->ctx, at + HEADER + len + 1, &n) != 1 ||
        EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_GET_TAG, TAG, at + HEADER + len + 1) != 1)
        return false;
    h->seq++;
    to->end += HEADER + sealed;
    return true;
}

/* Decrypt the @len bytes at @record, header and tag included, to @to, which may be where they lie:
 * content and padding, of which the last byte that is not 0 is the type. */
static bool unseal(struct half *h, uint8_t *record, size_t len, uint8_t *to, uint8_t *ret_last)
{
    size_t inner = len - HEADER - TAG;
    uint8_t iv[IV];
    int n;

    nonce(h, iv);
    if (EVP_DecryptInit_ex(h->ctx, NULL, NULL, NULL, iv) != 1 ||
        EVP_DecryptUpdate(h->ctx, NULL, &n, record, HEADER) != 1 ||
        (inner > 1 && EVP_DecryptUpdate(h->ctx, to, &n, record + HEADER, (int)(inner - 1)) != 1) ||
        EVP_DecryptUpdate(h->ctx, ret_last, &n, record + HEADER + inner - 1, 1) != 1 ||
        EVP_CIPHER_CTX_ctrl(h->ctx, EVP_CTRL_AEAD_SET_TAG, TAG, record + len - TAG) != 1 ||
        EVP_DecryptFinal_ex(h->ctx, to, &n) != 1)
        return false;
    h->seq++;
    return true;
}

/* --- out ------------------------------------------------------------------------------------- */

/* A new key for what we send. */
static bool update_key(struct conn *c)
{
    struct records *t = c->records;
    const uint8_t message[5] = {KEY_UPDATE, 0, 0, 1, 0};

    return seal(&t->out, &c->cipher, HANDSHAKE, message, sizeof(message)) &&
           half_update(t, &t->out, true);
}

ssize_t records_write(struct conn *c, const uint8_t *from, size_t len)
{
    struct records *t = c->records;

    for (size_t at = 0; at < len;) {
        size_t n = rr_min(len - at, MAX_PLAIN);

        if ((t->out.seq >= RECORDS_PER_KEY && !update_key(c)) ||
            !seal(&t->out, &c->cipher, DATA, from + at, n)) {
            ERR_clear_error();
            return -EPIPE;
        }
        at += n;
    }
    return (ssize_t)len;
}

/* --- in -------------------------------------------------------------------------------------- */

/* Tells the peer, if @alert; the connection fails when what came before has been read. */
static int give_up(struct conn *c, uint8_t alert, const char *why)
{
    struct records *t = c->records;
    const uint8_t fatal[2] = {2, alert};

    ERR_clear_error();
    if (alert && seal(&t->out, &c->cipher, ALERT, fatal, sizeof(fatal)))
        tls_flush(c);
    snprintf(t->why, sizeof(t->why), "TLS: %s", why);
    t->ended = true; /* also where the caller only looks ahead */
    return -EPIPE;
}

static int on_alert(struct conn *c, const uint8_t *data, size_t len)
{
    char why[100];

    if (len != 2)
        return give_up(c, SSL_AD_DECODE_ERROR, "an alert of a wrong length");
    if (data[1] == USER_CANCELED)
        return 0;
    if (data[1] == CLOSE_NOTIFY)
        return -EPIPE;
    snprintf(why, sizeof(why), "the peer says: %s", SSL_alert_desc_string_long(data[1]));
    return give_up(c, 0, why);
}

/* The four bytes before a handshake message have come. */
static int begin_message(struct conn *c)
{
    struct records *t = c->records;
    const uint8_t *m = t->message;

    t->message_left = (size_t)m[1] << 16 | (size_t)m[2] << 8 | m[3];
    if ((m[0] == NEW_SESSION_TICKET && t->message_left <= MAX_TICKET) ||
        (m[0] == KEY_UPDATE && t->message_left == 1))
        return 0;
    return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "an unexpected handshake message");
}

/* All of it has come; @behind: bytes of its record that follow. */
static int end_message(struct conn *c, size_t behind)
{
    struct records *t = c->records;
    bool asked = t->message[4] == 1;

    t->n_message = 0;
    if (t->message[0] != KEY_UPDATE)
        return 0;
    if (behind || t->message[4] > 1)
        return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "a wrong key update");
    if (!half_update(t, &t->in, false) || (asked && !update_key(c)))
        return give_up(c, SSL_AD_INTERNAL_ERROR, "no new key can be had");
    if (asked)
        conn_want(c, c->events | EPOLLOUT); /* the answer */
    return 0;
}

/* Messages of the handshake that come behind it: tickets, which we don't use, and new keys. */
static int on_handshake(struct conn *c, const uint8_t *data, size_t len)
{
    struct records *t = c->records;
    int r = 0;

    if (len == 0)
        return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "an empty handshake record");
    for (const uint8_t *end = data + len; r == 0 && data < end;) {
        if (t->n_message < 4) {
            t->message[t->n_message++] = *data++;
            if (t->n_message == 4)
                r = begin_message(c);
        } else {
            size_t n = rr_min(t->message_left, (size_t)(end - data));

            t->message[4] = *data;
            data += n;
            t->message_left -= n;
        }
        if (r == 0 && t->n_message == 4 && !t->message_left)
            r = end_message(c, (size_t)(end - data));
    }
    return r;
}

/* The length of the record at the beginning of @raw, or 0 if it is not whole; -EPIPE. */
static ssize_t whole_record(struct conn *c)
{
    const struct bytes *raw = &c->records->raw;
    const uint8_t *at = raw->data + raw->start;
    size_t len;

    if (bytes_len(raw) < HEADER)
        return 0;
    len = (size_t)at[3] << 8 | at[4];
    if (at[0] != DATA || len < 1 + TAG)
        return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "a wrong record");
    if (len > MAX_CIPHER)
        return give_up(c, SSL_AD_RECORD_OVERFLOW, "a record that is too long");
    return bytes_len(raw) < HEADER + len ? 0 : (ssize_t)(HEADER + len);
}

/* The next record's content goes to @to if there is room for it, else it stays in @raw. Bytes at
 * @to; -EAGAIN: no record is whole; -EPIPE. */
static ssize_t next_record(struct conn *c, uint8_t *to, size_t room)
{
    struct records *t = c->records;
    ssize_t len = whole_record(c);
    uint8_t *record, last, *out;
    size_t n;
    bool direct;

    if (len <= 0)
        return len ? len : -EAGAIN;
    record = t->raw.data + t->raw.start;
    n = (size_t)len - HEADER - TAG - 1;
    direct = n <= room;
    out = direct ? to : record + HEADER;
    if (!unseal(&t->in, record, (size_t)len, out, &last)) {
        memset(out, 0, n); /* it is not what the peer sent */
        return give_up(c, SSL_AD_BAD_RECORD_MAC, "a record does not decrypt");
    }
    while (!last && n)
        last = out[--n];
    if (n > MAX_PLAIN)
        return give_up(c, SSL_AD_RECORD_OVERFLOW, "a record that is too long");
    if (t->n_message && last != HANDSHAKE)
        return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "a record within a handshake message");
    if (last == DATA && n) {
        t->n_idle = 0;
        if (direct) {
            t->raw.start += (size_t)len;
            return (ssize_t)n;
        }
        t->raw.start += HEADER;
        t->plain = n;
        t->behind = (size_t)len - HEADER - n;
        return 0;
    }
    t->raw.start += (size_t)len;
    if (++t->n_idle > MAX_IDLE)
        return give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "too many records of nothing");
    return last == DATA    ? 0
           : last == ALERT ? on_alert(c, out, n)
           : last == HANDSHAKE
               ? on_handshake(c, out, n)
               : give_up(c, SSL_AD_UNEXPECTED_MESSAGE, "a record of an unknown type");
}

/* Receive. Bytes; -EAGAIN; -EPIPE. */
static ssize_t fill(struct conn *c)
{
    struct bytes *raw = &c->records->raw;
    size_t cap = c->state == CONN_OPEN && c->extra ? ROOM_EXTRA : ROOM_MAIN;
    ssize_t n;

    if (raw->start == raw->end)
        raw->start = raw->end = 0;
    if (raw->cap < cap) {
        if (!bytes_room(raw, cap - bytes_len(raw)))
            return -EPIPE;
    } else if (raw->start && raw->cap - raw->end < raw->cap / 2) {
        memmove(raw->data, raw->data + raw->start, bytes_len(raw));
        raw->end -= raw->start;
        raw->start = 0;
    }
    do
        n = recv(c->fd, raw->data + raw->end, raw->cap - raw->end, MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    c->net->stats.reads++;
    if (n <= 0)
        return n < 0 && errno == EAGAIN ? -EAGAIN : -EPIPE;
    raw->end += (size_t)n;
    c->net->stats.in_bytes += (uint64_t)n;
    return n;
}

/* A connection that has nothing to read needs no buffer, but one for large payloads will again. */
static void free_if_empty(struct conn *c)
{
    struct bytes *raw = &c->records->raw;

    if (raw->start == raw->end && !c->extra)
        bytes_free(raw);
}

ssize_t records_read_raw(struct conn *c, uint8_t *to, size_t len)
{
    struct bytes *raw = &c->records->raw;
    ssize_t n = bytes_len(raw) ? 1 : fill(c);

    if (n <= 0)
        return n;
    len = rr_min(len, bytes_len(raw));
    memcpy(to, raw->data + raw->start, len);
    raw->start += len;
    return (ssize_t)len;
}

bool records_pending(const struct records *t)
{
    return bytes_len(&t->raw) > 0;
}

ssize_t records_read(struct conn *c, uint8_t *to, size_t len)
{
    struct records *t = c->records;
    size_t got = 0;

    while (got < len && !t->ended) {
        size_t n = rr_min(t->plain, len - got);
        ssize_t r;

        if (n) {
            memcpy(to + got, t->raw.data + t->raw.start, n);
            t->raw.start += n;
            t->plain -= n;
            got += n;
            if (!t->plain)
                t->raw.start += t->behind;
            continue;
        }
        r = next_record(c, to + got, len - got);
        if (r > 0)
            got += (size_t)r;
        else if (r == -EAGAIN && !got)
            r = fill(c);
        if (r == -EAGAIN)
            break;
        t->ended = r < 0;
    }
    c->tls_more = got && (t->plain || whole_record(c) != 0 || t->ended);
    if (got)
        return (ssize_t)got;
    free_if_empty(c);
    if (!t->ended)
        return -EAGAIN;
    if (t->why[0]) /* while nobody has confided in the peer it is a matter of configuration */
        conn_fail(c, c->state == CONN_OPEN ? LOG_LOST : LOG_TLS, "%s", t->why);
    return -EPIPE;
}
