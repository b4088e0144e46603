/* SPDX-License-Identifier: Apache-2.0 */
/* Records of TLS: against OpenSSL's, and from a hostile peer that has the keys. */
#include "test.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <unistd.h>

#define RECORDS_PER_KEY 8

/* The source itself: the hostile peer seals what no header lets it. */
#include "channel/net_record.c"

struct ours {
    struct rr_net net;
    struct conn c;
};

static void ours_init(struct ours *o, int fd)
{
    memset(o, 0, sizeof(*o));
    o->net.epoll_fd = -1;
    o->net.closing = true; /* and so does not log */
    o->net.stats.connections = 1;
    o->net.conns = &o->c;
    o->c.net = &o->net;
    o->c.fd = fd;
    o->c.state = CONN_OPEN;
    o->c.records = records_new();
    assert_non_null(o->c.records);
}

static void new_sockets(int fds[2])
{
    int size = 4 << 20;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    for (int n = 0; n < 2; n++)
        setsockopt(fds[n], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

/* --- against OpenSSL ------------------------------------------------------------------------- */

static void on_line(const SSL *ssl, const char *line)
{
    records_on_secret(SSL_get_app_data(ssl), line);
}

static SSL_CTX *new_context(bool server, const char *suite)
{
    SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    EVP_PKEY *key;
    X509 *cert;

    assert_non_null(ctx);
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    assert_int_equal(SSL_CTX_set_ciphersuites(ctx, suite), 1);
    if (!server)
        return ctx;
    key = EVP_EC_gen("P-256");
    cert = X509_new();
    X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    SSL_CTX_use_certificate(ctx, cert);
    SSL_CTX_use_PrivateKey(ctx, key);
    X509_free(cert);
    EVP_PKEY_free(key);
    return ctx;
}

/* OpenSSL at both ends makes the handshake; then ours goes on at the one end. */
struct pair {
    struct ours o;
    SSL *ssl;
};

static void new_pair(struct pair *p, const char *suite, bool server)
{
    SSL_CTX *ctx[2] = {new_context(false, suite), new_context(true, suite)};
    SSL *ssl[2], *mine;
    bool done[2] = {false, false};
    int fds[2];

    new_sockets(fds);
    ours_init(&p->o, fds[server]);
    SSL_CTX_set_keylog_callback(ctx[server], on_line);
    if (server) /* as net_tls.c */
        SSL_CTX_set_num_tickets(ctx[1], 0);
    for (int n = 0; n < 2; n++) {
        ssl[n] = SSL_new(ctx[n]);
        SSL_set_fd(ssl[n], fds[n]);
        n ? SSL_set_accept_state(ssl[n]) : SSL_set_connect_state(ssl[n]);
    }
    mine = ssl[server];
    SSL_set_app_data(mine, p->o.c.records);
    for (int turn = 0; turn < 20 && !(done[0] && done[1]); turn++)
        for (int n = 0; n < 2; n++)
            done[n] = done[n] || SSL_do_handshake(ssl[n]) == 1;
    assert_true(done[0] && done[1]);
    assert_true(records_begin(p->o.c.records,
                              SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(mine)), server));
    SSL_free(mine);
    p->ssl = ssl[!server];
    SSL_CTX_free(ctx[0]);
    SSL_CTX_free(ctx[1]);
}

static void free_pair(struct pair *p)
{
    int fd = SSL_get_fd(p->ssl);

    SSL_free(p->ssl);
    close(fd);
    if (p->o.c.state != CONN_CLOSED)
        conn_close(&p->o.c);
    bytes_free(&p->o.c.cipher);
}

static void fill_with(uint8_t *data, size_t len, unsigned int seed)
{
    for (size_t n = 0; n < len; n++)
        data[n] = (uint8_t)(seed = seed * 1664525 + 1013904223, seed >> 24);
}

/* Each way, in pieces of such sizes. */
static void carry(struct pair *p, size_t len, size_t write_piece, size_t read_piece)
{
    uint8_t *from = malloc(len), *to = malloc(len + read_piece);
    size_t sent, got;

    fill_with(from, len, (unsigned int)len);
    for (sent = got = 0; got < len;) {
        size_t n = rr_min(write_piece, len - sent);
        ssize_t r;

        if (n && bytes_len(&p->o.c.cipher) < 100000) {
            assert_int_equal(records_write(&p->o.c, from + sent, n), n);
            sent += n;
        }
        r = tls_flush(&p->o.c);
        assert_true(r == 0 || r == -EAGAIN);
        while (got < len &&
               (r = SSL_read(p->ssl, to + got, (int)rr_min(read_piece, len - got))) > 0)
            got += (size_t)r;
    }
    assert_memory_equal(from, to, len);
    memset(to, 0, len);
    for (sent = got = 0; got < len;) {
        int w =
            sent < len ? SSL_write(p->ssl, from + sent, (int)rr_min(write_piece, len - sent)) : 0;
        ssize_t r = 0;

        sent += w > 0 ? (size_t)w : 0;
        while (got < len && (r = records_read(&p->o.c, to + got, read_piece)) > 0)
            got += (size_t)r;
        assert_true(got == len || r == -EAGAIN);
    }
    assert_int_equal(got, len);
    assert_memory_equal(from, to, len);
    free(from);
    free(to);
}

static const struct {
    const char *suite;
    bool server, extra;
} sides[] = {
    {"TLS_AES_128_GCM_SHA256", false, false},       {"TLS_AES_128_GCM_SHA256", true, true},
    {"TLS_AES_256_GCM_SHA384", false, true},        {"TLS_AES_256_GCM_SHA384", true, false},
    {"TLS_CHACHA20_POLY1305_SHA256", false, false}, {"TLS_CHACHA20_POLY1305_SHA256", true, true},
};

static void test_openssl(void **state)
{
    static const struct {
        size_t len, write_piece, read_piece;
    } ways[] = {
        {1, 1, 1},
        {100, 7, 3},
        {16384, 16384, 16384},
        {16385, 16385, 100000},
        {50000, 16383, 512},
        {200000, 65536, 1000},
        {3000000, 65536, 1 << 20},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(sides); n++) {
        unsigned int before = count_fds();
        struct pair p;

        new_pair(&p, sides[n].suite, sides[n].server);
        p.o.c.extra = sides[n].extra;
        for (size_t k = 0; k < RR_ARRAY_LEN(ways); k++)
            carry(&p, ways[k].len, ways[k].write_piece, ways[k].read_piece);
        assert_true(SSL_set_block_padding(p.ssl, 4096));
        carry(&p, 100000, 1000, 100000);
        carry(&p, 100000, 16384, 333);
        free_pair(&p);
        assert_int_equal(count_fds(), before);
    }
}

/* The peer changes its key, and asks for ours to be changed or does not. Ours changes every 8
 * records, too. */
static void test_key_update(void **state)
{
    static const int kinds[] = {SSL_KEY_UPDATE_NOT_REQUESTED, SSL_KEY_UPDATE_REQUESTED};

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(sides); n++) {
        struct pair p;

        new_pair(&p, sides[n].suite, sides[n].server);
        for (size_t k = 0; k < 6; k++) {
            const struct records *t = p.o.c.records;
            uint8_t in[32], out[32], byte;

            memcpy(in, t->in.secret, sizeof(in));
            memcpy(out, t->out.secret, sizeof(out));
            assert_int_equal(SSL_key_update(p.ssl, kinds[k % 2]), 1);
            assert_int_equal(SSL_do_handshake(p.ssl), 1);
            assert_int_equal(records_read(&p.o.c, &byte, 1), -EAGAIN);
            assert_memory_not_equal(in, t->in.secret, sizeof(in));
            assert_int_equal(memcmp(out, t->out.secret, sizeof(out)) != 0,
                             kinds[k % 2] == SSL_KEY_UPDATE_REQUESTED);
            carry(&p, 20000, 5000, 5000);
        }
        free_pair(&p);
    }
}

static void test_close(void **state)
{
    struct pair p;
    uint8_t to[10];

    (void)state;
    new_pair(&p, sides[0].suite, false);
    assert_int_equal(SSL_write(p.ssl, "last", 4), 4);
    SSL_shutdown(p.ssl);
    assert_int_equal(records_read(&p.o.c, to, sizeof(to)), 4);
    assert_memory_equal(to, "last", 4);
    assert_true(p.o.c.tls_more);
    assert_int_equal(records_read(&p.o.c, to, sizeof(to)), -EPIPE);
    free_pair(&p);
}

/* OpenSSL understands what we say of a record that was changed on the way. */
static void test_damaged(void **state)
{
    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(sides); n++) {
        uint8_t to[100], *at;
        struct pair p;

        new_pair(&p, sides[n].suite, sides[n].server);
        assert_int_equal(SSL_write(p.ssl, "good", 4), 4);
        assert_int_equal(SSL_write(p.ssl, "bad bad bad", 11), 11);
        if (!sides[n].server) /* tickets come before */
            assert_int_equal(records_read(&p.o.c, to, 1), 1);
        else
            assert_true(fill(&p.o.c) > 0);
        at = p.o.c.records->raw.data;
        at[p.o.c.records->raw.end - 20] ^= 1;
        assert_true(records_read(&p.o.c, to, sizeof(to)) >= 3);
        assert_int_equal(records_read(&p.o.c, to, sizeof(to)), -EPIPE);
        assert_int_equal(p.o.c.state, CONN_CLOSED);
        assert_true(SSL_read(p.ssl, to, sizeof(to)) <= 0);
        assert_int_equal(ERR_GET_REASON(ERR_peek_last_error()), SSL_R_SSLV3_ALERT_BAD_RECORD_MAC);
        ERR_clear_error();
        free_pair(&p);
    }
}

/* --- a hostile peer -------------------------------------------------------------------------- */

static void begin_with_known_keys(struct records *t, bool server)
{
    char line[200];

    for (int side = 0; side < 2; side++) {
        snprintf(line, sizeof(line), "%s_TRAFFIC_SECRET_0 00 %064x", side ? "SERVER" : "CLIENT",
                 0x1234 + side);
        records_on_secret(t, line);
    }
    assert_true(records_begin(t, 0x1301, server));
}

struct record {
    uint8_t type;
    const char *data; /* NULL: zeroes */
    size_t len;
};

static const struct {
    const char *name, *why;
    struct record records[3];
    unsigned int repeat; /* of the first; 0: once */
    ssize_t got;         /* before the end */
} hostile[] = {
    {"nothing at all", "", {{DATA, "abc", 3}}, 0, 3},
    {"padding alone", "TLS: a record of an unknown type", {{0, NULL, 50}}, 0, 0},
    {"unknown type", "TLS: a record of an unknown type", {{24, "abc", 3}}, 0, 0},
    {"change of cipher", "TLS: a record of an unknown type", {{20, "\1", 1}}, 0, 0},
    {"as long as may be", "", {{DATA, NULL, MAX_PLAIN}}, 0, MAX_PLAIN},
    {"too long by one", "TLS: a record that is too long", {{DATA, NULL, MAX_PLAIN + 1}}, 0, 0},
    {"too long by much", "TLS: a record that is too long", {{DATA, NULL, MAX_PLAIN + 255}}, 0, 0},
    {"empty ones", "", {{DATA, "", 0}, {DATA, "x", 1}}, MAX_IDLE, 1},
    {"too many empty ones", "TLS: too many records of nothing", {{DATA, "", 0}}, MAX_IDLE + 1, 0},
    {"alert", "TLS: the peer says: internal error", {{ALERT, "\2\x50", 2}}, 0, 0},
    {"alert behind data",
     "TLS: the peer says: unknown CA",
     {{DATA, "abc", 3}, {ALERT, "\2\x30", 2}},
     0,
     3},
    {"cancelled by the user", "", {{ALERT, "\1\x5a", 2}, {DATA, "abc", 3}}, 0, 3},
    {"short alert", "TLS: an alert of a wrong length", {{ALERT, "\2", 1}}, 0, 0},
    {"two alerts in one", "TLS: an alert of a wrong length", {{ALERT, "\2\0\2\0", 4}}, 0, 0},
    {"empty handshake", "TLS: an empty handshake record", {{HANDSHAKE, "", 0}}, 0, 0},
    {"client hello", "TLS: an unexpected handshake message", {{HANDSHAKE, "\1\0\0\0", 4}}, 0, 0},
    {"ticket", "", {{HANDSHAKE, "\4\0\0\3abc", 7}, {DATA, "abc", 3}}, 0, 3},
    {"ticket in pieces",
     "",
     {{HANDSHAKE, "\4\0", 2}, {HANDSHAKE, "\0\3abc", 5}, {DATA, "abc", 3}},
     0,
     3},
    {"two tickets", "", {{HANDSHAKE, "\4\0\0\1a\4\0\0\0", 9}, {DATA, "abc", 3}}, 0, 3},
    {"ticket, torn",
     "TLS: a record within a handshake message",
     {{HANDSHAKE, "\4\0\0\3a", 5}, {DATA, "abc", 3}},
     0,
     0},
    {"ticket, torn early",
     "TLS: a record within a handshake message",
     {{HANDSHAKE, "\4", 1}, {ALERT, "\1\x5a", 2}},
     0,
     0},
    {"huge ticket",
     "TLS: an unexpected handshake message",
     {{HANDSHAKE, "\4\x7f\xff\xff", 4}},
     0,
     0},
    {"long key update",
     "TLS: an unexpected handshake message",
     {{HANDSHAKE, "\x18\0\0\2\0\0", 6}},
     0,
     0},
    {"key update of 2", "TLS: a wrong key update", {{HANDSHAKE, "\x18\0\0\1\2", 5}}, 0, 0},
    {"key update, and more", "TLS: a wrong key update", {{HANDSHAKE, "\x18\0\0\1\0\4", 6}}, 0, 0},
    {"key update, old key",
     "TLS: a record does not decrypt",
     {{HANDSHAKE, "\x18\0\0\1\0", 5}, {DATA, "abc", 3}},
     0,
     0},
};

static void test_hostile(void **state)
{
    static uint8_t zeroes[MAX_PLAIN + 300], to[MAX_PLAIN + 300];

    (void)state;
    for (size_t room = 1; room <= sizeof(to); room += room < 2 ? 130 : sizeof(to) - 131)
        for (size_t n = 0; n < RR_ARRAY_LEN(hostile); n++) {
            struct records *peer = records_new();
            struct bytes out = {0};
            struct ours o;
            ssize_t r, got = 0;
            int fds[2];

            print_message("%s\n", hostile[n].name);
            new_sockets(fds);
            ours_init(&o, fds[0]);
            begin_with_known_keys(o.c.records, false);
            begin_with_known_keys(peer, true);
            for (size_t k = 0; k < 3; k++)
                for (unsigned int i = 0; i < (k || !hostile[n].repeat ? 1 : hostile[n].repeat); i++)
                    if (hostile[n].records[k].type || hostile[n].records[k].len)
                        assert_true(seal(&peer->out, &out, hostile[n].records[k].type,
                                         hostile[n].records[k].data
                                             ? (const uint8_t *)hostile[n].records[k].data
                                             : zeroes,
                                         hostile[n].records[k].len));
            assert_int_equal(write(fds[1], out.data, bytes_len(&out)), bytes_len(&out));
            o.c.state = CONN_CLOSED; /* and so it is not closed, and can be asked why it would be */
            while ((r = records_read(&o.c, to, room)) > 0)
                got += r;
            assert_string_equal(o.c.records->why, hostile[n].why);
            assert_int_equal(got, hostile[n].got);
            assert_int_equal(r, hostile[n].why[0] ? -EPIPE : -EAGAIN);
            o.c.state = CONN_OPEN;
            conn_close(&o.c);
            bytes_free(&o.c.cipher);
            bytes_free(&out);
            records_free(peer);
            close(fds[1]);
        }
}

/* What is no record that could be decrypted. */
static void test_garbage(void **state)
{
    static const struct {
        const char *data;
        size_t len;
        const char *why;
    } garbage[] = {
        {"\x16\3\3\0\x20", 5, "TLS: a wrong record"},
        {"\x17\3\3\0\x10", 5, "TLS: a wrong record"},
        {"\x17\3\3\0\0", 5, "TLS: a wrong record"},
        {"\x17\3\3\x41\1", 5, "TLS: a record that is too long"},
        {"\x17\3\3\xff\xff", 5, "TLS: a record that is too long"},
        {"HTTP/1.1 400", 12, "TLS: a wrong record"},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(garbage); n++) {
        struct ours o;
        uint8_t to[10];
        int fds[2];

        new_sockets(fds);
        ours_init(&o, fds[0]);
        begin_with_known_keys(o.c.records, false);
        assert_int_equal(write(fds[1], garbage[n].data, garbage[n].len), garbage[n].len);
        assert_int_equal(fill(&o.c), garbage[n].len);
        assert_int_equal(whole_record(&o.c), -EPIPE);
        assert_string_equal(o.c.records->why, garbage[n].why);
        assert_int_equal(records_read(&o.c, to, sizeof(to)), -EPIPE);
        assert_int_equal(o.c.state, CONN_CLOSED);
        close(fds[1]);
    }
}

static void test_secrets(void **state)
{
    static const struct {
        const char *client, *server;
        uint16_t suite;
        bool good;
    } table[] = {
        {"00", "11", 0x1301, false},
        {"0011223344556677889900112233445566778899001122334455667788990011",
         "0011223344556677889900112233445566778899001122334455667788990011", 0x1301, true},
        {"0011223344556677889900112233445566778899001122334455667788990011",
         "0011223344556677889900112233445566778899001122334455667788990011", 0x1302, false},
        {"0011223344556677889900112233445566778899001122334455667788990011",
         "0011223344556677889900112233445566778899001122334455667788990011", 0x1304, false},
        {"0011223344556677889900112233445566778899001122334455667788990011", "", 0x1301, false},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(table); n++) {
        struct records *t = records_new();
        char line[300];

        records_on_secret(t, "EXPORTER_SECRET 00 1234");
        records_on_secret(t, "CLIENT_TRAFFIC_SECRET_0 ");
        snprintf(line, sizeof(line), "CLIENT_TRAFFIC_SECRET_0 ab %s", table[n].client);
        records_on_secret(t, line);
        snprintf(line, sizeof(line), "SERVER_TRAFFIC_SECRET_0 ab %s", table[n].server);
        records_on_secret(t, line);
        assert_int_equal(records_begin(t, table[n].suite, n % 2), table[n].good);
        records_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openssl), cmocka_unit_test(test_key_update),
        cmocka_unit_test(test_close),   cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_secrets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
