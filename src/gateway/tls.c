/* SPDX-License-Identifier: Apache-2.0 */
/* TLS 1.2 and later, by OpenSSL, over sockets that do not block. */
#include <errno.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>
#include <sys/uio.h>

#include "base/util.h"
#include "gateway/internal.h"

static int fail(const char *what, const char *file, struct rr_error *err)
{
    char why[160];

    ERR_error_string_n(ERR_peek_last_error(), why, sizeof(why));
    return rr_error_set(err, RR_E_NOINPUT, "give PEM files that belong together",
                        "cannot use the %s %s: %s", what, file, why);
}

/* The one protocol that is spoken here; a client that offers none of it is let in as well. */
static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                   const unsigned char *in, unsigned int in_len, void *user)
{
    static const unsigned char http[] = "\x08http/1.1";

    (void)ssl;
    (void)user;
    if (SSL_select_next_proto((unsigned char **)(uintptr_t)out, out_len, http, sizeof(http) - 1, in,
                              in_len) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    return SSL_TLSEXT_ERR_OK;
}

static int use_files(SSL_CTX *ctx, const struct rr_gateway_options *o, struct rr_error *err)
{
    static const unsigned char session[] = "roadrunner";
    STACK_OF(X509_NAME) * names;

    if (SSL_CTX_use_certificate_chain_file(ctx, o->tls_cert) != 1)
        return fail("certificate", o->tls_cert, err);
    if (SSL_CTX_use_PrivateKey_file(ctx, o->tls_key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ctx) != 1)
        return fail("key", o->tls_key, err);
    if (!o->tls_client_ca)
        return 0;
    names = SSL_load_client_CA_file(o->tls_client_ca);
    if (!names || SSL_CTX_load_verify_locations(ctx, o->tls_client_ca, NULL) != 1)
        return fail("authority of clients", o->tls_client_ca, err);
    SSL_CTX_set_client_CA_list(ctx, names);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_session_id_context(ctx, session, sizeof(session) - 1);
    return 0;
}

int rr_tls_new(const struct rr_gateway_options *o, struct ssl_ctx_st **ret, struct rr_error *err)
{
    SSL_CTX *ctx;
    int r;

    ERR_clear_error();
    ctx = SSL_CTX_new(TLS_server_method());
    if (!ctx)
        return rr_error_no_memory(err);
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_ENABLE_KTLS);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(ctx, on_alpn, NULL);
    r = use_files(ctx, o, err);
    if (r) {
        SSL_CTX_free(ctx);
        return r;
    }
    *ret = ctx;
    return 0;
}

void rr_tls_free(struct ssl_ctx_st *ctx)
{
    SSL_CTX_free(ctx);
}

struct ssl_st *rr_tls_accept(struct ssl_ctx_st *ctx, int fd)
{
    SSL *ssl = SSL_new(ctx);

    if (ssl && SSL_set_fd(ssl, fd) != 1) {
        SSL_free(ssl);
        return NULL;
    }
    if (ssl)
        SSL_set_accept_state(ssl); /* the first read shakes hands */
    return ssl;
}

void rr_tls_end(struct ssl_st *ssl, bool last)
{
    ERR_clear_error();
    if (SSL_is_init_finished(ssl))
        SSL_shutdown(ssl); /* tells that nothing follows; who is gone does not matter */
    if (last)
        SSL_free(ssl);
}

bool rr_tls_shaken(const struct ssl_st *ssl)
{
    return SSL_is_init_finished(ssl);
}

/* As of a system call: -1 with EAGAIN or EPIPE; 0 when the other has ended. */
static ssize_t outcome(SSL *ssl)
{
    switch (SSL_get_error(ssl, 0)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        errno = EPIPE; /* also an end without a notice: somebody may have cut it */
        return -1;
    }
}

ssize_t rr_tls_readv(struct ssl_st *ssl, const struct iovec *iov, int n)
{
    ssize_t sum = 0;

    for (int k = 0; k < n; k++)
        for (size_t done = 0, got; done < iov[k].iov_len; done += got, sum += (ssize_t)got) {
            ERR_clear_error();
            if (SSL_read_ex(ssl, (char *)iov[k].iov_base + done, iov[k].iov_len - done, &got) != 1)
                return sum ? sum : outcome(ssl);
        }
    return sum;
}

ssize_t rr_tls_writev(struct ssl_st *ssl, const struct iovec *iov, int n)
{
    ssize_t sum = 0;

    for (int k = 0; k < n; k++)
        for (size_t done = 0, put; done < iov[k].iov_len; done += put, sum += (ssize_t)put) {
            ERR_clear_error();
            if (SSL_write_ex(ssl, (const char *)iov[k].iov_base + done, iov[k].iov_len - done,
                             &put) == 1)
                continue;
            if (sum)
                return sum;
            return outcome(ssl) ? -1 : (errno = EPIPE, -1);
        }
    return sum;
}
