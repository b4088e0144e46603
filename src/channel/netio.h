/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of the network channel only:
 *
 *   net.c          nets, listeners, timers, the pump and what it delivers
 *   net_peer.c     peers: dialing, sessions, their begin and end
 *   net_message.c  frames of a session: messages, acks, credit
 *   net_conn.c     one connection: bytes in and out, and which frame they belong to
 *   net_pace.c     how fast a large payload is sent
 *   net_tls.c      certificates, and TLS on a connection
 *   net_record.c   TLS's records, where the kernel does not make them
 *   net_resolve.c  names to addresses, in a thread
 */
#ifndef RR_CHANNEL_NETIO_H
#define RR_CHANNEL_NETIO_H

#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include "channel/net.h"

#define RR_NET_SCRATCH (256u << 10)
#define RR_NET_MAX_OUT (1u << 20) /* bytes that may wait on a main connection before -EAGAIN */
#define RR_NET_MAX_ADDRESSES 16
#define RR_NET_CONTROL_WINDOW (4ull << 20)
#define RR_NET_CONTROL_COST 64u  /* of a word, besides its bytes */
#define RR_NET_MESSAGE_COST 256u /* of a small message, besides payload and metadata */

static const char rr_net_peer_hint[] =
    "the peer is broken, hostile or of another version; restart it";

/* Why a peer ends a connection, in ERROR. */
enum rr_net_reason {
    REASON_VERSION = 1,
    REASON_NOT_ADMITTED,
    REASON_NO_SESSION, /* an extra connection names none that is here */
    REASON_BROKE_RULE,
    REASON_BUSY,
    REASON_RESET
};

/* What epoll tells about. */
enum source_kind { SOURCE_CONN, SOURCE_LISTENER, SOURCE_RESOLVER, SOURCE_WATCHED };

/* A queue of bytes. */
struct bytes {
    uint8_t *data;
    size_t start, end, cap;
};

enum conn_state {
    CONN_CONNECTING,
    CONN_TLS,
    CONN_GREETING, /* waits for HELLO */
    CONN_ADMITTING,
    CONN_OPEN,
    CONN_CLOSED /* freed at the end of the pump */
};

/* See net_pace.c. */
struct pace {
    uint64_t began_ns, acked, busy_us, ends_us; /* of the window that is measured */
    uint64_t sum;                               /* of n_same rates */
    unsigned int n_same;
    uint64_t rate; /* that is asked for; 0, UINT64_MAX: TCP is left alone */
    uint64_t link; /* that was measured */
    uint64_t probe_ns, patience_ns;
    bool probing;
};

struct conn {
    enum source_kind kind;
    struct rr_net *net;
    struct rr_net_peer *peer; /* NULL: accepted, and has not greeted */
    struct conn *next, *prev; /* of its net's */
    int fd;
    enum conn_state state;
    bool accepted, unix_socket, extra;
    uint32_t events; /* that epoll was asked for */
    uint32_t index;  /* of an extra one */
    char address[80];
    /* TLS */
    SSL *ssl;
    bool ktls;
    struct records *records; /* NULL: of kTLS, or plain */
    bool tls_more;           /* bytes to be read lie in @records, which epoll does not know */
    struct bytes cipher;     /* encrypted, to be sent */
    /* liveness */
    uint64_t since_ns, rx_ns, progress_ns, tx_bytes, tx_seen;
    bool pinged;
    /* in */
    uint8_t header[RR_WIRE_HEADER];
    size_t header_got;
    struct rr_wire_header h;
    struct bytes part;   /* an unfinished frame: of a main connection with its header */
    struct incoming *in; /* whose chunk is coming; NULL: it is dropped */
    uint64_t chunk_left;
    bool low_water; /* SO_RCVLOWAT is raised */
    /* out */
    struct bytes out;
    struct outgoing *queue, *queue_last; /* large messages, the first is being sent */
    uint64_t chunk_to_send;
    size_t n_queued;
    struct pace pace;
    struct bytes between; /* frames that go out when the chunk is */
};

/* A message that we have sent. */
struct outgoing {
    uint64_t seq;
    void *cookie;
    struct rr_net_peer *peer;
    struct outgoing *spare; /* the next unused one */
    bool bulk, received, cancelled;
    struct rr_error *refusal;                  /* owned */
    uint32_t n_targets, n_open;                /* open: done() is yet to come */
    uint64_t wanted[RR_WIRE_MAX_TARGETS / 64]; /* targets with acked */
    uint64_t open[RR_WIRE_MAX_TARGETS / 64];
    /* large ones, until they are sent */
    struct outgoing *next; /* on its connection */
    struct conn *conn;     /* NULL: all is out */
    struct conn *via;
    uint8_t *head;
    size_t head_bytes, head_sent;
    const uint8_t *data;      /* NULL: in the region, wherever its pages are */
    struct rr_region *region; /* borrowed */
    int fd;                   /* of the region; -1: it has none */
    uint64_t len, offset, sent;
};

/* A message that comes, or is not done with. */
struct incoming {
    uint64_t seq, handle;   /* the sender's name for it, and ours */
    struct incoming *spare; /* the next unused one */
    bool bulk, whole, delivered, held, refused, cancelled;
    uint32_t n_targets, n_open;
    uint64_t open[RR_WIRE_MAX_TARGETS / 64];
    uint64_t cost;
    /* large ones, until they are delivered */
    struct conn *conn;
    struct rr_region *region;
    struct rr_wire_header h;
    uint8_t *head;
    uint64_t len, got, came_ns;
    uint8_t *to; /* NULL: it is dropped */
};

enum event_kind {
    EVENT_MESSAGE,
    EVENT_CONTROL,
    EVENT_ADMIT,
    EVENT_UP,
    EVENT_DOWN,
    EVENT_DONE,
    EVENT_READY,
    EVENT_CANCELLED,
    EVENT_NOTHING
};

struct event {
    struct event *next;
    enum event_kind kind;
    struct rr_net_peer *peer; /* holds a reference */
    uint64_t session;         /* the peer's count of sessions then */
    uint64_t handle;
    uint64_t came_ns; /* of a message: its head */
    void *cookie;
    uint32_t target, word;
    bool acked, lost;
    struct rr_wire_header h;
    struct rr_error *err;     /* owned */
    struct rr_region *region; /* owned, of a large message */
    uint8_t *head;            /* owned, of the same */
    size_t len;
    uint8_t data[];
};

struct rr_net_peer {
    struct rr_net *net;
    struct rr_net_peer *next, *prev;
    unsigned int refs;
    bool dialed, freed, up, admitted;
    bool no_session, elsewhere; /* see peer_elsewhere(): wanted, done */
    void *data;
    char *target;
    char address[80];
    char identity[256];
    char *names; /* all of its certificate, each with a NUL, then an empty one */
    struct rr_wire_text *texts;
    uint32_t n_texts;
    uint64_t n_sessions;
    uint8_t session[16];
    uint8_t fingerprint[32]; /* of its certificate, or of its user; zeroes: plain */
    struct conn *main, *extra[RR_WIRE_MAX_BULK];
    uint32_t n_bulk, n_open;
    /* dialing */
    struct resolve *resolve;
    struct sockaddr_storage addresses[RR_NET_MAX_ADDRESSES];
    uint32_t n_addresses, next_address, n_attempts;
    struct sockaddr_storage reached; /* by the main connection */
    uint64_t dial_ns;                /* when to begin again, or to try the next address too */
    unsigned int failures;
    struct rr_error failure;
    /* out */
    struct outgoing **outs; /* by slot: the low 16 bits of seq */
    uint16_t *free_outs;
    uint32_t n_outs, n_free_outs, n_waiting;
    uint64_t out_count;
    struct rr_wire_credit sent, granted_us, window_of_peer;
    bool starved; /* ready() is owed */
    /* in */
    struct incoming **ins;
    uint64_t in_count;
    struct rr_wire_credit got, granted, told;
    struct bytes backs; /* rows of BACK to be sent */
    bool dirty;         /* in net->dirty: it has backs or credit to tell */
    struct rr_net_peer *next_dirty;
};

struct listener {
    enum source_kind kind;
    struct listener *next;
    int fd;
    bool unix_socket;
    ino_t inode; /* of the socket's file */
    mode_t mode;
    char path[108];
};

#define RR_NET_LOG_KINDS 12

struct rr_net {
    struct rr_net_options o;
    int epoll_fd;
    SSL_CTX *server, *client; /* NULL: plain */
    struct listener *listeners;
    struct conn *conns, *closed;
    struct rr_net_peer *peers;
    uint32_t n_pending, n_accepted;
    struct conn *hot; /* by which something came last */
    struct rr_net_peer *dirty;
    struct event *events, *events_last;
    struct resolver *resolver;
    uint64_t now_ns, next_ns;
    bool again; /* something is left to do that no descriptor tells of */
    bool pumping, deliver, closing;
    unsigned int n_waiting, n_delivered, skipped;
    uint8_t *scratch;
    struct bytes head; /* of the message that is sent */
    /* kept, so that a message needs no allocation */
    struct outgoing *spare_outs;
    struct incoming *spare_ins;
    unsigned int n_spare_outs, n_spare_ins;
    struct rr_net_target *targets;
    char *names;
    struct rr_net_stats stats;
    struct {
        uint64_t at_ns;
        unsigned int n;
    } logged[RR_NET_LOG_KINDS];
};

/* net.c */
enum log_kind {
    LOG_ACCEPT,
    LOG_TLS,
    LOG_GREETING,
    LOG_RULE,
    LOG_BUSY,
    LOG_ADMIT,
    LOG_LOST,
    LOG_DIAL,
    LOG_SILENT,
    LOG_TIMEOUT,
    LOG_REFUSED,
    LOG_MEMORY
};
/* One line a minute of each kind. */
__attribute__((format(printf, 3, 4))) void net_log(struct rr_net *net, enum log_kind kind,
                                                   const char *fmt, ...);
void net_arm(struct rr_net *net, uint64_t at_ns);
/* Append an event; NULL: no memory, the peer's session has ended. @len: of its data. */
struct event *net_event(struct rr_net_peer *peer, enum event_kind kind, size_t len);
void net_event_error(struct event *e, const struct rr_error *err);
/* Nothing waits to be delivered before, and now is the time: the callback may be called directly.
 */
bool net_direct(const struct rr_net *net);

/* net_peer.c */
struct rr_net_peer *peer_new(struct rr_net *net);
void peer_ref(struct rr_net_peer *peer);
void peer_unref(struct rr_net_peer *peer);
/* Its session is over, or its attempt; @why: NULL: it said goodbye. */
void peer_end(struct rr_net_peer *peer, const struct rr_error *why);
void peer_redial(struct rr_net_peer *peer);
void peer_dial_next(struct rr_net_peer *peer);
void peer_resolved(struct rr_net_peer *peer, const struct sockaddr_storage *addresses, uint32_t n,
                   const char *failure);
void peer_timer(struct rr_net_peer *peer);
/* The peer's HELLO, or the ERROR that it sent instead. */
void peer_on_hello(struct conn *c, const struct rr_wire_header *h, const uint8_t *body);
/* EVENT_ADMIT: ask. */
void peer_admit(struct event *e);
/* An extra connection has failed because its session is not there: it is tried where the main one
 * said, once. */
bool peer_elsewhere(struct rr_net_peer *peer, struct conn *c);
void peer_connected(struct conn *c);
void peer_accepted(struct conn *c);
/* Both sides: the connection may be used, so greet. */
void peer_greet(struct conn *c);

/* net_message.c */
void message_on_frame(struct conn *c, const struct rr_wire_header *h, const uint8_t *body);
void message_on_chunk(struct conn *c, const struct rr_wire_header *h);
void message_chunk_done(struct conn *c);
/* EVENT_MESSAGE: now. */
void message_deliver(struct event *e);
void message_flush(struct rr_net_peer *peer);
/* Would message_flush() have something to write? */
bool message_owes(const struct rr_net_peer *peer);
void message_free_spares(struct rr_net *net);
/* A session has ended: all messages of it. */
void message_end(struct rr_net_peer *peer);
/* A session begins. 0 or -ENOMEM. */
int message_begin(struct rr_net_peer *peer, const struct rr_wire_credit *window);
void message_sent(struct outgoing *m);
/* It was cancelled before any of it was sent. */
void message_unsent(struct outgoing *m);
uint8_t *message_chunk_place(struct conn *c);

/* net_conn.c */
struct conn *conn_new(struct rr_net *net, int fd, bool accepted, bool unix_socket);
/* Nothing comes from it and goes to it any more. */
void conn_close(struct conn *c);
/* It has failed; what that means depends on its state. */
__attribute__((format(printf, 3, 4))) void conn_fail(struct conn *c, enum log_kind kind,
                                                     const char *fmt, ...);
/* The peer broke a rule. */
void conn_broke(struct conn *c, const struct rr_error *err);
void conn_want(struct conn *c, uint32_t events);
void conn_ready(struct conn *c, uint32_t events);
/* Move bytes in; true: something came. */
bool conn_read(struct conn *c);
void conn_write(struct conn *c);
void conn_enqueue(struct conn *c, struct outgoing *m);
void conn_timer(struct conn *c);
/* Append a frame. @n: pieces. false: no memory; the connection has failed. */
bool conn_put(struct conn *c, const struct iovec *v, size_t n);
bool conn_put_frame(struct conn *c, enum rr_wire_type type, uint64_t seq, const void *body,
                    uint32_t len);
/* A frame without a body, as soon as it is not in the midst of a chunk. */
void conn_put_between(struct conn *c, enum rr_wire_type type, uint64_t seq);
void conn_pong(struct conn *c, uint64_t seq);
void conn_put_error(struct conn *c, enum rr_net_reason reason, const char *text);
/* Like conn_put(), but write at once what can be written. */
bool conn_send(struct conn *c, const struct iovec *v, size_t n);
void conn_greeted(struct conn *c);
bool bytes_room(struct bytes *b, size_t n);
bool bytes_add(struct bytes *b, const void *data, size_t n);
void bytes_free(struct bytes *b);
static inline size_t bytes_len(const struct bytes *b)
{
    return b->end - b->start;
}

/* net_pace.c */
/* While something large is being sent, often. */
void pace_look(struct conn *c);

/* net_tls.c */
int tls_load(const struct rr_net_options *o, SSL_CTX **ret_server, SSL_CTX **ret_client,
             struct rr_error *err);
int tls_start(struct conn *c, const char *host);
/* 1: done; 0: not yet; -1: failed, @text says why. */
int tls_handshake(struct conn *c, char *text, size_t size);
/* Bytes; -EAGAIN; -EPIPE. */
ssize_t tls_read(struct conn *c, uint8_t *to, size_t len);
ssize_t tls_write(struct conn *c, const uint8_t *from, size_t len);
ssize_t tls_sendfile(struct conn *c, int fd, off_t offset, size_t len);
/* Write what is encrypted. 0; -EAGAIN; -EPIPE. */
int tls_flush(struct conn *c);
int tls_identity(struct conn *c, struct rr_net_peer *peer);
void tls_fingerprint(struct conn *c, uint8_t ret[32]);

/* net_record.c */
struct records *records_new(void);
void records_free(struct records *t);
/* A line as SSL_CTX_set_keylog_callback() gives it. */
void records_on_secret(struct records *t, const char *line);
/* The handshake is done. @suite: its number on the wire. false: there are no keys for it. */
bool records_begin(struct records *t, uint16_t suite, bool server);
/* What came, as it came. Bytes; -EAGAIN; -EPIPE. */
ssize_t records_read_raw(struct conn *c, uint8_t *to, size_t len);
bool records_pending(const struct records *t);
/* Bytes; -EAGAIN; -EPIPE, and the connection may have failed. Sets tls_more. */
ssize_t records_read(struct conn *c, uint8_t *to, size_t len);
/* Appends to @c's cipher. @len, or -EPIPE. */
ssize_t records_write(struct conn *c, const uint8_t *from, size_t len);

/* net_resolve.c */
struct resolver *resolver_new(int *ret_fd);
void resolver_free(struct resolver *r);
/* 0; -EAGAIN: too many at once; else why no thread can be had. */
int resolver_ask(struct resolver *r, struct rr_net_peer *peer, const char *host, const char *port);
void resolver_forget(struct resolver *r, const struct rr_net_peer *peer);
void resolver_collect(struct resolver *r);
/* "host:port" into its parts. false: it is none. */
bool net_split(const char *text, char *host, size_t host_size, char *port, size_t port_size);
bool net_numeric(const char *host, const char *port, bool passive, struct sockaddr_storage *ret);
socklen_t net_address_len(const struct sockaddr_storage *a);
void net_address_text(const struct sockaddr_storage *a, char *ret, size_t size);

#endif
