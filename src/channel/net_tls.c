/* SPDX-License-Identifier: Apache-2.0 */
/* TLS 1.3, both sides with a certificate. Where the kernel can encrypt (kTLS), OpenSSL works on the
 * socket itself. Else it makes the handshake, and net_record.c the records behind it, gathered in a
 * buffer, so that one system call carries many.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "channel/netio.h"

#define CIPHER_FULL (128u << 10) /* bytes gathered before they are written */

static const char *ssl_text(char *text, size_t size)
{
    unsigned long e = ERR_peek_last_error();

    if (e)
        ERR_error_string_n(e, text, size);
    else
        snprintf(text, size, "the connection ended");
    ERR_clear_error();
    return text;
}

/* --- bytes of OpenSSL ------------------------------------------------------------------------ */

static int bio_write(BIO *bio, const char *data, int len)
{
    struct conn *c = BIO_get_data(bio);

    BIO_clear_retry_flags(bio);
    if (len <= 0 || !bytes_add(&c->cipher, data, (size_t)len))
        return -1;
    return len;
}

static int bio_read(BIO *bio, char *data, int len)
{
    struct conn *c = BIO_get_data(bio);
    ssize_t n;

    BIO_clear_retry_flags(bio);
    if (len <= 0)
        return 0;
    n = records_read_raw(c, (uint8_t *)data, (size_t)len);
    if (n == -EAGAIN)
        BIO_set_retry_read(bio);
    return n > 0 ? (int)n : n == -EAGAIN ? -1 : 0;
}

static long bio_ctrl(BIO *bio, int what, long number, void *data)
{
    (void)bio;
    (void)number;
    (void)data;
    return what == BIO_CTRL_FLUSH || what == BIO_CTRL_DUP;
}

static int bio_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static BIO_METHOD *bio_method(void)
{
    static BIO_METHOD *method;

    if (method)
        return method;
    method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "roadrunner net");
    if (method) {
        BIO_meth_set_write(method, bio_write);
        BIO_meth_set_read(method, bio_read);
        BIO_meth_set_ctrl(method, bio_ctrl);
        BIO_meth_set_create(method, bio_create);
    }
    return method;
}

/* Can this kernel encrypt? */
static bool kernel_can(void)
{
    int fd = open("/proc/sys/net/ipv4/tcp_available_ulp", O_RDONLY | O_CLOEXEC);
    char text[256] = "";
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (fd >= 0)
        close(fd);
    for (char *word = n > 0 ? strtok(text, " \n") : NULL; word; word = strtok(NULL, " \n"))
        if (strcmp(word, "tls") == 0)
            return true;
    return false;
}

static void on_secret(const SSL *ssl, const char *line)
{
    struct records *t = SSL_get_app_data(ssl);

    if (t)
        records_on_secret(t, line);
}

/* --- certificates ---------------------------------------------------------------------------- */

static int load_failed(struct rr_error *err, const char *file, const char *what)
{
    char text[200];
    int readable = access(file, R_OK), error = errno;

    if (readable < 0)
        return rr_error_set(err, RR_E_NOINPUT,
                            "TLS needs a certificate, its key and the CA's, in PEM",
                            "cannot read the %s %s: %s", what, file, strerror(error));
    return rr_error_set(err, RR_E_INVALID, "TLS needs a certificate, its key and the CA's, in PEM",
                        "the %s %s is not usable: %s", what, file, ssl_text(text, sizeof(text)));
}

static int load_one(const struct rr_net_tls *tls, const SSL_METHOD *method, SSL_CTX **ret,
                    struct rr_error *err)
{
    SSL_CTX *ctx = SSL_CTX_new(method);
    int r = 0;

    if (!ctx)
        return rr_error_set(err, RR_E_SYSTEM, NULL, "no memory for TLS");
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    /* the first is the fastest, and as good as need be */
    SSL_CTX_set_ciphersuites(
        ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET);
    if (kernel_can())
        SSL_CTX_set_options(ctx, SSL_OP_ENABLE_KTLS);
    else
        SSL_CTX_set_keylog_callback(ctx, on_secret);
    if (SSL_CTX_use_certificate_chain_file(ctx, tls->cert_file) != 1)
        r = load_failed(err, tls->cert_file, "certificate");
    else if (SSL_CTX_use_PrivateKey_file(ctx, tls->key_file, SSL_FILETYPE_PEM) != 1 ||
             SSL_CTX_check_private_key(ctx) != 1)
        r = load_failed(err, tls->key_file, "key");
    else if (SSL_CTX_load_verify_locations(ctx, tls->ca_file, NULL) != 1)
        r = load_failed(err, tls->ca_file, "file of CAs");
    if (r)
        SSL_CTX_free(ctx);
    else
        *ret = ctx;
    return r;
}

int tls_load(const struct rr_net_options *o, SSL_CTX **ret_server, SSL_CTX **ret_client,
             struct rr_error *err)
{
    SSL_CTX *server = NULL, *client = NULL;
    int r = load_one(&o->tls, TLS_server_method(), &server, err);

    ERR_clear_error();
    if (r == 0)
        r = load_one(&o->tls, TLS_client_method(), &client, err);
    if (r) {
        SSL_CTX_free(server);
        return r;
    }
    *ret_server = server;
    *ret_client = client;
    return 0;
}

/* --- handshake ------------------------------------------------------------------------------- */

int tls_start(struct conn *c, const char *host)
{
    SSL_CTX *ctx = c->accepted ? c->net->server : c->net->client;
    bool kernel = (SSL_CTX_get_options(ctx) & SSL_OP_ENABLE_KTLS) != 0;
    struct in6_addr ip;
    BIO *bio;

    c->ssl = SSL_new(ctx);
    bio = !c->ssl ? NULL : kernel ? BIO_new_socket(c->fd, BIO_NOCLOSE) : BIO_new(bio_method());
    if (!bio)
        return -ENOMEM;
    c->ktls = kernel;
    SSL_set_bio(c->ssl, bio, bio);
    if (!kernel) {
        c->records = records_new();
        if (!c->records)
            return -ENOMEM;
        BIO_set_data(bio, c);
        SSL_set_app_data(c->ssl, c->records);
    }
    if (c->accepted) {
        SSL_set_accept_state(c->ssl);
        return 0;
    }
    SSL_set_connect_state(c->ssl);
    if (!host || c->net->o.any_host)
        return 0;
    if (inet_pton(AF_INET, host, &ip) == 1 || inet_pton(AF_INET6, host, &ip) == 1)
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(c->ssl), host) == 1 ? 0 : -EINVAL;
    /* SSL_set_tlsext_host_name(), which casts the const away */
    SSL_ctrl(c->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name,
             (void *)(uintptr_t)host);
    return SSL_set1_host(c->ssl, host) == 1 ? 0 : -EINVAL;
}

int tls_handshake(struct conn *c, char *text, size_t size)
{
    int r, e;
    long verify;

    ERR_clear_error();
    r = SSL_do_handshake(c->ssl);
    e = r == 1 ? SSL_ERROR_NONE : SSL_get_error(c->ssl, r);
    verify = SSL_get_verify_result(c->ssl);
    if (r != 1 && e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE) {
        tls_flush(c); /* the alert */
        if (verify != X509_V_OK) {
            ERR_clear_error();
            snprintf(text, size, "its certificate: %s", X509_verify_cert_error_string(verify));
        } else {
            ssl_text(text, size);
        }
        return -1;
    }
    if (tls_flush(c) == -EPIPE) {
        snprintf(text, size, "the connection ended");
        return -1;
    }
    if (r != 1)
        return 0;
    /* What came behind the handshake: records of it OpenSSL has not asked for. */
    c->tls_more = c->ktls || records_pending(c->records);
    c->net->stats.kernel_tls = c->ktls && BIO_get_ktls_send(SSL_get_wbio(c->ssl));
    if (!c->ktls &&
        (SSL_has_pending(c->ssl) ||
         !records_begin(c->records, SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(c->ssl)),
                        c->accepted))) {
        snprintf(text, size, "no keys for %s", SSL_get_cipher(c->ssl));
        return -1;
    }
    return 1;
}

/* --- identity -------------------------------------------------------------------------------- */

/* Append a name, if it is a text without a NUL inside. */
static void add_name(struct bytes *names, const ASN1_STRING *s)
{
    const uint8_t *data = ASN1_STRING_get0_data(s);
    int len = ASN1_STRING_length(s);

    if (len < 1 || len > 255)
        return;
    for (int n = 0; n < len; n++)
        if (data[n] < 0x20 || data[n] >= 0x7f)
            return;
    if (bytes_room(names, (size_t)len + 1)) {
        bytes_add(names, data, (size_t)len);
        bytes_add(names, "", 1);
    }
}

static void add_alternatives(struct bytes *names, X509 *cert, int type)
{
    GENERAL_NAMES *all = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);

    for (int n = 0; n < sk_GENERAL_NAME_num(all); n++) {
        const GENERAL_NAME *g = sk_GENERAL_NAME_value(all, n);

        if (g->type == type)
            add_name(names, g->d.ia5);
    }
    GENERAL_NAMES_free(all);
}

int tls_identity(struct conn *c, struct rr_net_peer *peer)
{
    X509 *cert = SSL_get1_peer_certificate(c->ssl);
    struct bytes names = {0};
    X509_NAME *subject;
    int at;

    if (!cert)
        return -EACCES;
    add_alternatives(&names, cert, GEN_URI);
    add_alternatives(&names, cert, GEN_DNS);
    subject = X509_get_subject_name(cert);
    at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    if (at >= 0)
        add_name(&names, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    X509_free(cert);
    if (!bytes_add(&names, "", 1))
        return -ENOMEM;
    free(peer->names);
    peer->names = (char *)names.data;
    snprintf(peer->identity, sizeof(peer->identity), "%s", peer->names);
    return 0;
}

void tls_fingerprint(struct conn *c, uint8_t ret[32])
{
    X509 *cert = SSL_get1_peer_certificate(c->ssl);
    unsigned int len = 32;

    memset(ret, 0, 32);
    if (cert)
        X509_digest(cert, EVP_sha256(), ret, &len);
    X509_free(cert);
}

/* --- bytes ----------------------------------------------------------------------------------- */

static ssize_t outcome(struct conn *c, int r)
{
    int e = SSL_get_error(c->ssl, r);
    char text[256];

    if (e == SSL_ERROR_SSL && c->state != CONN_OPEN) { /* what we showed it does not please it */
        ssl_text(text, sizeof(text));
        conn_fail(c, LOG_TLS, "TLS: %s", text);
    }
    ERR_clear_error();
    return e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE ? -EAGAIN : -EPIPE;
}

ssize_t tls_read(struct conn *c, uint8_t *to, size_t len)
{
    size_t n;
    int r;

    if (!c->ktls)
        return records_read(c, to, len);
    ERR_clear_error();
    r = SSL_read_ex(c->ssl, to, len, &n);
    if (r != 1) {
        c->tls_more = false;
        return outcome(c, r);
    }
    c->net->stats.reads++;
    c->net->stats.in_bytes += n;
    c->tls_more = SSL_has_pending(c->ssl) == 1;
    return (ssize_t)n;
}

int tls_flush(struct conn *c)
{
    while (bytes_len(&c->cipher)) {
        ssize_t n = send(c->fd, c->cipher.data + c->cipher.start, bytes_len(&c->cipher),
                         MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        c->net->stats.writes++;
        if (n < 0)
            return errno == EAGAIN ? -EAGAIN : -EPIPE;
        c->cipher.start += (size_t)n;
        c->net->stats.out_bytes += (uint64_t)n;
        c->tx_bytes += (uint64_t)n;
    }
    c->cipher.start = c->cipher.end = 0;
    return 0;
}

ssize_t tls_write(struct conn *c, const uint8_t *from, size_t len)
{
    size_t n;
    int r;

    if (bytes_len(&c->cipher) >= CIPHER_FULL) {
        r = tls_flush(c);
        if (r)
            return r;
    }
    if (!c->ktls)
        return records_write(c, from, len);
    ERR_clear_error();
    r = SSL_write_ex(c->ssl, from, len, &n);
    if (r != 1)
        return outcome(c, r);
    c->net->stats.writes++;
    c->net->stats.out_bytes += n;
    c->tx_bytes += n;
    return (ssize_t)n;
}

ssize_t tls_sendfile(struct conn *c, int fd, off_t offset, size_t len)
{
    ossl_ssize_t n;

    if (!c->ktls || !BIO_get_ktls_send(SSL_get_wbio(c->ssl)))
        return -ENOTSUP;
    ERR_clear_error();
    n = SSL_sendfile(c->ssl, fd, offset, len, 0);
    if (n <= 0)
        return outcome(c, (int)n);
    c->net->stats.writes++;
    c->net->stats.out_bytes += (uint64_t)n;
    c->tx_bytes += (uint64_t)n;
    return n;
}
