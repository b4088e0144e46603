/* SPDX-License-Identifier: Apache-2.0 */
/* This process among other nodes: who they are, and the messages to and from them. */
#include "worker/nodes.h"

#include <ctype.h>
#include <errno.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/serve.h"

#define NAME_BYTES 160   /* "function.port" */
#define TICK_NS 2000000u /* between looks at the sockets while guests run */
#define MAX_WORDS 4096   /* that wait for room at one peer */
#define MAX_DEADLINE_NS (1ull << 60)
#define MAX_SESSIONS 1024
#define N_ENDED 256       /* sessions that are known to be over */
#define RTT_NS 100000000u /* for which TCP's word on the round trip is good */

static const char letters_name[] = ".dead", result_name[] = ".result";

/* A word that found no room. */
struct waiting_word {
    struct waiting_word *next;
    uint32_t word;
    size_t len;
    uint8_t data[];
};

/* What we keep for a peer that is up, or that we dial. */
struct via {
    uint64_t id; /* of the connection; never used again */
    struct nodes *nodes;
    struct rr_net_peer *peer;
    int node; /* that we dialed; -1: it dialed us */
    struct remote
        *session; /* it is the origin of; NULL: it is another node, or we are the origin */
    struct waiting_word *words, *last_word;
    unsigned int n_words;
    uint64_t rtt_ns, rtt_at_ns;
    struct rr_error why; /* it is down */
};

struct edge_name {
    char from[NAME_BYTES], to[NAME_BYTES];
};

struct nodes {
    struct rr_net *net;
    const struct rr_workflow *wf;
    struct rr_worker *base; /* the origin's, or what sessions are made of */
    bool serving;
    char digest[RR_DIGEST_TEXT], incarnation[33], session[RR_SESSION_TEXT];
    char host[RR_HOST_TEXT]; /* "": nobody need know */
    struct edge_name *names; /* by edge */
    int *by_name;            /* edges, sorted by these */
    struct via **dialed;     /* by node */
    struct via **vias;       /* all */
    size_t n_vias;
    uint64_t n_ids;
    struct rr_worker **sessions; /* serving; of the origin: itself */
    size_t n_sessions;
    uint8_t ended[N_ENDED][RR_SESSION_BYTES]; /* the sessions that ended last */
    size_t n_ended;                           /* so far */
};

static const char *node_name(const struct rr_workflow *wf, int node)
{
    return node < 0 ? "origin" : wf->nodes[node].name;
}

static bool unhex(const char *text, uint8_t *to, size_t n)
{
    if (!text || strlen(text) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        const char digits[3] = {text[2 * i], text[2 * i + 1], 0};
        char *end;

        to[i] = (uint8_t)strtoul(digits, &end, 16);
        if (*end || !isxdigit((unsigned char)digits[0]))
            return false;
    }
    return true;
}

/* --- names of edges -------------------------------------------------------------------------- */

static int compare_name(const char *from, const char *to, const struct edge_name *name)
{
    int r = strcmp(to, name->to);

    return r ? r : strcmp(from, name->from);
}

static int compare_edges(const void *a, const void *b, void *user)
{
    const struct edge_name *names = user, *one = &names[*(const int *)a];

    return compare_name(one->from, one->to, &names[*(const int *)b]);
}

static int name_edges(struct nodes *nodes)
{
    const struct rr_workflow *wf = nodes->wf;

    nodes->names = calloc(wf->n_edges, sizeof(*nodes->names));
    nodes->by_name = calloc(wf->n_edges, sizeof(*nodes->by_name));
    if (!nodes->names || !nodes->by_name)
        return -ENOMEM;
    for (size_t n = 0; n < wf->n_edges; n++) {
        const struct rr_edge *e = &wf->edges[n];

        nodes->by_name[n] = (int)n;
        if (e->from < 0)
            snprintf(nodes->names[n].from, NAME_BYTES, "input");
        else
            snprintf(nodes->names[n].from, NAME_BYTES, "%s.%s", wf->functions[e->from].name,
                     e->from_port);
        snprintf(nodes->names[n].to, NAME_BYTES, "%s.%s", wf->functions[e->to].name, e->to_port);
    }
    qsort_r(nodes->by_name, wf->n_edges, sizeof(int), compare_edges, nodes->names);
    return 0;
}

/* -1: there is none. */
static int find_edge(const struct nodes *nodes, const char *from, const char *to)
{
    size_t low = 0, high = nodes->wf->n_edges;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int edge = nodes->by_name[middle], r = compare_name(from, to, &nodes->names[edge]);

        if (r == 0)
            return edge;
        if (r < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

/* --- peers ----------------------------------------------------------------------------------- */

static struct via *via_new(struct nodes *nodes, int node)
{
    struct via **grown = reallocarray(nodes->vias, nodes->n_vias + 1, sizeof(struct via *));
    struct via *v = grown ? calloc(1, sizeof(*v)) : NULL;

    if (grown)
        nodes->vias = grown;
    if (!v)
        return NULL;
    *v = (struct via){.id = ++nodes->n_ids, .nodes = nodes, .node = node};
    nodes->vias[nodes->n_vias++] = v;
    return v;
}

static void drop_words(struct via *v)
{
    while (v->words) {
        struct waiting_word *w = v->words;

        v->words = w->next;
        free(w);
    }
    v->last_word = NULL;
    v->n_words = 0;
}

static void via_free(struct via *v)
{
    struct nodes *nodes = v->nodes;

    for (size_t n = 0; n < nodes->n_vias; n++)
        if (nodes->vias[n] == v)
            nodes->vias[n] = nodes->vias[--nodes->n_vias];
    drop_words(v);
    free(v);
}

static struct rr_worker *find_session(const struct nodes *nodes, const uint8_t *id)
{
    for (size_t n = 0; n < nodes->n_sessions; n++)
        if (memcmp(nodes->sessions[n]->remote->session, id, RR_SESSION_BYTES) == 0)
            return nodes->sessions[n];
    return NULL;
}

static int unlike(struct rr_error *err, const struct rr_net_peer *peer, const char *what,
                  const char *hint)
{
    return rr_error_set(err, RR_E_INVALID, hint, "%s %s", rr_net_peer_address(peer), what);
}

/* Is the node that we dialed who it should be? Without TLS its address has to do. */
static int check_node(const struct nodes *nodes, const struct rr_net_peer *peer, int node,
                      struct rr_error *err)
{
    const struct rr_node *n = &nodes->wf->nodes[node];
    const char *name = rr_net_peer_text(peer, "node");

    if (!name || strcmp(name, n->name) != 0)
        return unlike(err, peer, "is another node than the workflow's file says",
                      "correct its `address`, or start it with the right --node");
    if (nodes->wf->chain && !nodes->serving) { /* as when it was asked? */
        const char *next = rr_net_peer_text(peer, "next");

        if (!next || strcmp(next, n->next ? n->next : "") != 0)
            return unlike(err, peer, "hands on to another function than before", "run it again");
    }
    if (n->identity && *rr_net_peer_identity(peer) && !rr_net_peer_is(peer, n->identity))
        return unlike(err, peer, "has a certificate of somebody else",
                      "correct its `identity`, or its certificate");
    return 0;
}

static int too_many(struct rr_error *err)
{
    return rr_error_set(err, RR_E_LIMIT, "try again later, or start another node",
                        "%d sessions are open already", MAX_SESSIONS);
}

static int on_admit(void *user, struct rr_net_peer *peer, struct rr_error *err)
{
    struct nodes *nodes = user;
    struct via *v = rr_net_peer_data(peer);
    const char *digest = rr_net_peer_text(peer, "digest");
    const char *session = rr_net_peer_text(peer, "session");
    uint8_t id[RR_SESSION_BYTES];

    if (!digest || strcmp(digest, nodes->digest) != 0)
        return nodes->wf->chain
                   ? unlike(err, peer, "is of a chain that delivers otherwise, or of none",
                            "give all of a chain the same roadrunner.dev/delivery; commands know "
                            "chain:at-least-once:NAME")
                   : unlike(err, peer, "has another version of the workflow",
                            "give all nodes the same workflow file");
    if (v)
        return check_node(nodes, peer, v->node, err);
    if (session && *session && !unhex(session, id, sizeof(id)))
        return unlike(err, peer, "names a session that is none", "restart it");
    if (session && *session && !find_session(nodes, id) && nodes->n_sessions == MAX_SESSIONS)
        return too_many(err);
    return 0;
}

/* On the same machine: it may be reached without the network. */
static bool is_near(const struct nodes *nodes, const struct rr_net_peer *peer)
{
    const char *theirs = rr_net_peer_text(peer, "host");

    return *nodes->host && theirs && strcmp(nodes->host, theirs) == 0;
}

/* Where @node listens, which has number @as there; it may be this process. */
static void tell_near(struct remote *rm, struct rr_net_peer *peer, int node, int as)
{
    static _Thread_local struct word_of_node w; /* one thread; too large for a stack */
    const struct via *v = rr_net_peer_data(peer);

    if (node == rm->w->wf->here)
        rr_near_open(rm); /* or it says that there is none */
    w.n = (uint32_t)(as + 1);
    snprintf(w.text, sizeof(w.text), "%s", rr_near_dir(rm, node));
    rr_nodes_say(rm, peer, NODE_LINK, &w);
    if (rm->states && v->node >= 0)
        rm->states[v->node].told_near = true;
}

void rr_nodes_introduce(struct remote *rm, int node)
{
    struct rr_net_peer *peer = rm->nodes->dialed[node]->peer;

    tell_near(rm, peer, RR_NODE_HERE, RR_NODE_HERE);
    for (int n = 0; n < (int)rm->w->wf->n_nodes; n++) {
        bool chain = rm->w->wf->chain; /* then only the one before need know, as its number 1 */

        if (n == node || !*rr_near_dir(rm, n) || !rm->nodes->dialed[n])
            continue;
        if (!chain || n == node + 1)
            tell_near(rm, peer, n, chain ? 1 : n);
        if (!chain || n + 1 == node)
            tell_near(rm, rm->nodes->dialed[n]->peer, node, chain ? 1 : node);
    }
}

static bool has_ended(const struct nodes *nodes, const uint8_t *id)
{
    for (size_t n = 0; n < rr_min(nodes->n_ended, N_ENDED); n++)
        if (memcmp(nodes->ended[n], id, RR_SESSION_BYTES) == 0)
            return true;
    return false;
}

/* When its origin comes, or a message from another node that was faster. */
static struct rr_worker *open_session(struct nodes *nodes, const uint8_t *id, struct rr_error *err)
{
    struct rr_worker **grown =
        reallocarray(nodes->sessions, nodes->n_sessions + 1, sizeof(struct rr_worker *));
    struct rr_worker *w;

    if (!grown) {
        rr_error_no_memory(err);
        return NULL;
    }
    nodes->sessions = grown;
    if (nodes->n_sessions == MAX_SESSIONS) {
        too_many(err);
        return NULL;
    }
    if (rr_session_new(nodes, id, &w, err))
        return NULL;
    nodes->sessions[nodes->n_sessions++] = w;
    return w;
}

/* An origin has come, or has come back. */
static int attach(struct nodes *nodes, struct via *v, const uint8_t *id, struct rr_error *err)
{
    struct rr_worker *w = find_session(nodes, id);
    struct remote *rm;

    if (!w)
        w = open_session(nodes, id, err);
    if (!w)
        return (int)err->code;
    rm = w->remote;
    if (rm->origin) /* a new connection of who had not noticed the end of the old one */
        for (size_t n = 0; n < nodes->n_vias; n++)
            if (nodes->vias[n]->session == rm)
                nodes->vias[n]->session = NULL;
    rm->origin = v->peer;
    v->session = rm;
    if (is_near(nodes, v->peer))
        tell_near(rm, v->peer, nodes->wf->here, nodes->wf->here);
    return 0;
}

static void on_up(void *user, struct rr_net_peer *peer)
{
    struct nodes *nodes = user;
    struct via *v = rr_net_peer_data(peer);
    const char *session = rr_net_peer_text(peer, "session");
    uint8_t id[RR_SESSION_BYTES];
    struct rr_error err;

    if (v) {
        v->id = ++nodes->n_ids; /* numbers of messages begin anew */
        if (!nodes->serving)
            rr_nodes_found(nodes->base->remote, v->node, rr_net_peer_text(peer, "incarnation"),
                           is_near(nodes, peer));
        return;
    }
    v = via_new(nodes, -1);
    if (!v) {
        rr_error_no_memory(&err);
        rr_net_peer_reset(peer, &err);
        return;
    }
    v->peer = peer;
    rr_net_peer_set_data(peer, v);
    if (!session || !*session)
        return;
    if (unhex(session, id, sizeof(id)) && attach(nodes, v, id, &err) == 0)
        rr_log(2, "%s runs the workflow here", rr_net_peer_address(peer));
    else
        rr_net_peer_reset(peer, &err);
}

static void on_down(void *user, struct rr_net_peer *peer, const struct rr_error *why, bool gone)
{
    struct via *v = rr_net_peer_data(peer);
    struct nodes *nodes = user;

    if (!v)
        return;
    drop_words(v);
    v->why = *why;
    if (v->session) {
        rr_log(2, "%s is away: %s", rr_net_peer_address(peer), why->text);
        v->session->origin = NULL;
        rr_near_lost(v->session, RR_NODE_HERE);
        v->session->away_ns = rr_now_ns();
        v->session = NULL;
    }
    if (v->node >= 0 && !nodes->serving)
        rr_nodes_missed(nodes->base->remote, v->node, why);
    if (gone)
        via_free(v);
}

static int dial(struct nodes *nodes, int node, struct rr_error *err)
{
    struct via *v;
    int r;

    if (nodes->dialed[node])
        return 0;
    v = via_new(nodes, node);
    if (!v)
        return rr_error_no_memory(err);
    r = rr_net_dial(nodes->net, nodes->wf->nodes[node].address, &v->peer, err);
    if (r) {
        via_free(v);
        rr_error_at(err, nodes->wf->path, nodes->wf->nodes[node].pos.line,
                    nodes->wf->nodes[node].pos.column);
        return r;
    }
    rr_net_peer_set_data(v->peer, v);
    nodes->dialed[node] = v;
    return 0;
}

struct rr_net_peer *rr_nodes_dial(struct nodes *nodes, int node, struct rr_error *err)
{
    return dial(nodes, node, err) ? NULL : nodes->dialed[node]->peer;
}

struct rr_worker **rr_nodes_sessions(struct nodes *nodes, size_t *ret_n)
{
    *ret_n = nodes->n_sessions;
    return nodes->sessions;
}

void rr_nodes_expire(struct nodes *nodes)
{
    for (size_t n = 0; n < nodes->n_sessions;) {
        struct rr_worker *w = nodes->sessions[n];

        if (!rr_session_over(w->remote)) {
            n++;
            continue;
        }
        if (w->remote->origin)
            rr_log(2, "%s is away: it has ended its session",
                   rr_net_peer_address(w->remote->origin));
        for (size_t k = 0; k < nodes->n_vias; k++)
            if (nodes->vias[k]->session == w->remote)
                nodes->vias[k]->session = NULL;
        memcpy(nodes->ended[nodes->n_ended++ % N_ENDED], w->remote->session, RR_SESSION_BYTES);
        nodes->sessions[n] = nodes->sessions[--nodes->n_sessions];
        rr_session_free(w);
    }
}

/* --- words ----------------------------------------------------------------------------------- */

static void keep_word(struct via *v, uint32_t word, const uint8_t *data, size_t len)
{
    struct waiting_word *w = v->n_words < MAX_WORDS ? malloc(sizeof(*w) + len) : NULL;

    if (!w) {
        rr_log(1, "%s does not listen: it is not told all", rr_net_peer_address(v->peer));
        return;
    }
    w->next = NULL;
    w->word = word;
    w->len = len;
    memcpy(w->data, data, len);
    if (v->last_word)
        v->last_word->next = w;
    else
        v->words = w;
    v->last_word = w;
    v->n_words++;
}

static void say_words(struct via *v)
{
    struct rr_error err;

    while (v->words && rr_net_control(v->peer, v->words->word, v->words->data, v->words->len,
                                      &err) != -EAGAIN) {
        struct waiting_word *w = v->words;

        v->words = w->next;
        v->n_words--;
        free(w);
    }
    if (!v->words)
        v->last_word = NULL;
}

void rr_nodes_say(struct remote *rm, struct rr_net_peer *peer, enum node_word word,
                  struct word_of_node *w)
{
    struct via *v = rr_net_peer_data(peer);
    uint8_t data[RR_WORD_BYTES];
    struct rr_error err;
    size_t len;

    memcpy(w->session, rm->session, sizeof(w->session));
    w->run = rm->run;
    len = rr_word_put(data, word, w);
    if (v && (v->words || rr_net_control(peer, word, data, len, &err) == -EAGAIN))
        keep_word(v, word, data, len);
}

static void on_control(void *user, struct rr_net_peer *peer, uint32_t word, const void *data,
                       size_t len)
{
    struct via *v = rr_net_peer_data(peer);
    struct nodes *nodes = user;
    static _Thread_local struct word_of_node w; /* one thread; too large for a stack */
    struct rr_error err;

    if (!v)
        return;
    if (rr_word_get(word, data, len, &w) < 0) {
        unlike(&err, peer, "said a word that is none", "give all nodes one version of roadrunner");
        rr_log(1, "%s", err.text);
        rr_net_peer_reset(peer, &err);
        return;
    }
    if (v->session && memcmp(w.session, v->session->session, RR_SESSION_BYTES) == 0)
        rr_session_hear(v->session, (enum node_word)word, &w);
    else if (!nodes->serving && v->node >= 0 &&
             memcmp(w.session, nodes->base->remote->session, RR_SESSION_BYTES) == 0)
        rr_origin_hear(nodes->base->remote, v->node, (enum node_word)word, &w);
}

static void on_ready(void *user, struct rr_net_peer *peer)
{
    struct via *v = rr_net_peer_data(peer);

    (void)user;
    if (v)
        say_words(v);
}

/* --- messages that go ------------------------------------------------------------------------ */

bool rr_nodes_elsewhere(const struct remote *rm, int to)
{
    return rm->nodes && rm->self < 0 && rr_node_of(rm->w->wf, to) != rm->w->wf->here;
}

bool rr_nodes_reach(const struct remote *rm, int to)
{
    return rr_nodes_elsewhere(rm, to) && !rr_near_domain(rm, to);
}

/* NULL: nobody there, now. */
static struct rr_net_peer *peer_of(struct remote *rm, int node, struct rr_error *err)
{
    struct rr_net_peer *peer;

    if (node == RR_NODE_HERE)
        return rm->origin;
    peer = rr_nodes_dial(rm->nodes, node, err);
    return peer && rr_net_peer_up(peer) ? peer : NULL;
}

int rr_nodes_why(const struct remote *rm, int to, struct rr_error *err)
{
    const struct rr_workflow *wf = rm->w->wf;
    int node = rr_node_of(wf, to);
    const struct via *v = node < 0 ? NULL : rm->nodes->dialed[node];

    if (node < 0 ? rm->origin != NULL : v && rr_net_peer_up(v->peer))
        return 0;
    return rr_error_set(err, RR_E_DIED, "look at its log, and at the network between the two",
                        "node '%s' cannot be reached: %s", node_name(wf, node),
                        v && v->why.code ? v->why.text : "its connection is gone");
}

static void unlink_batch(struct batch *b)
{
    struct batch **at = b->rm ? &b->rm->batches : NULL;

    while (at && *at && *at != b)
        at = &(*at)->next;
    if (at && *at)
        *at = b->next;
    free(b);
}

/* What a message for this edge is to be called. */
static struct rr_net_target target_of(const struct remote *rm, const struct message *m, int edge)
{
    const struct nodes *nodes = rm->nodes;
    struct rr_net_target t = {.id = m->id, .attempt = m->attempt, .acked = true};
    int n_edges = (int)nodes->wf->n_edges;

    if (edge < n_edges) {
        t.from = nodes->names[edge].from;
        t.to = nodes->names[edge].to;
    } else {
        t.from = edge == n_edges ? nodes->wf->functions[nodes->wf->result].name
                                 : nodes->names[m->status].from;
        t.to = edge == n_edges ? result_name : letters_name;
    }
    return t;
}

static void to_packet(const struct remote *rm, const struct message *m, struct rr_net_packet *p)
{
    uint64_t now = rr_now_ns();
    bool large = m->region && m->len > RR_WIRE_INLINE;

    *p = (struct rr_net_packet){
        .run = m->run,
        .status = m->status,
        .window = m->window,
        .slot_bytes = m->slot_bytes,
        .fixed = m->fixed,
        .age_ns = m->sent_ns && m->sent_ns < now ? now - m->sent_ns : 0,
        .copied_bytes = m->copied_bytes,
        .deadline_ns = m->deadline_ns ? (m->deadline_ns > now ? m->deadline_ns - now : 1) : 0,
        .meta = m->meta,
        .meta_len = (uint32_t)m->meta_len,
        .len = m->len,
        .offset = large ? m->offset : 0,
        .data = large ? NULL : rr_message_data(m),
        .region = large ? m->region : NULL,
    };
    memcpy(p->session, rm->session, sizeof(p->session));
}

int rr_nodes_send(struct remote *rm, struct message **ms, const int *edges, uint32_t n,
                  struct rr_error *err)
{
    const struct rr_workflow *wf = rm->w->wf;
    int node = edges[0] < (int)wf->n_edges ? rr_node_of(wf, wf->edges[edges[0]].to) : RR_NODE_HERE;
    struct rr_net_target one, *targets = n == 1 ? &one : calloc(n, sizeof(*targets));
    struct rr_net_packet p;
    struct rr_net_peer *peer;
    struct rr_error why;
    struct batch *b;
    int r = 0;

    rr_error_clear(&why);
    peer = peer_of(rm, node, &why);
    b = peer ? malloc(sizeof(*b) + n * sizeof(struct message *)) : NULL;

    if (!targets || (peer && !b))
        r = rr_error_no_memory(err);
    else if (!peer)
        r = why.code ? rr_error_set(err, why.code, why.hint, "%s", why.text) : -EAGAIN;
    if (r == 0) {
        for (uint32_t k = 0; k < n; k++)
            targets[k] = target_of(rm, ms[k], edges[k]);
        to_packet(rm, ms[0], &p);
        p.targets = targets;
        p.n_targets = n;
        r = rr_net_send(peer, &p, b, err);
    }
    if (r == 0) {
        *b = (struct batch){
            .next = rm->batches, .rm = rm, .peer = peer, .run = rm->run, .n = n, .left = n};
        memcpy(b->m, ms, n * sizeof(struct message *));
        rm->batches = b;
        rm->n_outgoing += n;
    } else {
        free(b);
    }
    if (n > 1)
        free(targets);
    return r;
}

/* A message is lost with its connection, or refused, and goes no more. */
static void on_lost(struct remote *rm, const struct message *m, int node,
                    const struct rr_error *refused)
{
    const struct rr_workflow *wf = rm->w->wf;
    const char *to = m->edge < (int)wf->n_edges ? wf->functions[wf->edges[m->edge].to].name : "-";

    if (m->run != rm->run || rm->stopping || rm->ended || rm->failure.code)
        return;
    if (refused)
        rr_error_set(&rm->failure, RR_E_LIMIT, refused->hint,
                     "node '%s' refuses a message for '%s': %s", node_name(wf, node), to,
                     refused->text);
    else
        rr_error_set(&rm->failure, RR_E_DIED,
                     "run it again; with `delivery: at-least-once` it would be sent once more",
                     "the connection to node '%s' was lost with a message for '%s' on its way",
                     node_name(wf, node), to);
}

static void on_done(void *user, struct rr_net_peer *peer, void *cookie, uint32_t target, bool acked,
                    bool lost, const struct rr_error *refused)
{
    const struct via *v = rr_net_peer_data(peer);
    struct batch *b = cookie;
    struct message *m = target < b->n ? rr_take(b->m[target]) : NULL;

    (void)user;
    if (!m)
        return;
    if (lost && m->region) /* its pages may lie in a socket still, whose other end reads them */
        rr_region_forsake(m->region);
    if (b->rm)
        b->rm->n_outgoing--;
    if (b->rm && lost && !acked && rr_remote_send_once_more(b->rm, m))
        m = NULL;
    else if (b->rm && (refused || (lost && !acked)))
        on_lost(b->rm, m, v ? v->node : RR_NODE_HERE, refused);
    rr_message_free(m);
    if (--b->left == 0)
        unlink_batch(b);
}

void rr_nodes_cancel(struct remote *rm)
{
    for (struct batch *b = rm->batches; b; b = b->next)
        if (b->run < rm->run)
            rr_net_cancel(b->peer, b);
}

/* The messages stay until the kernel does not read them any more. */
void rr_nodes_forget(struct remote *rm)
{
    rm->run = UINT64_MAX;
    rr_nodes_cancel(rm);
    for (struct batch *b = rm->batches, *next; b; b = next) {
        next = b->next;
        b->next = NULL;
        b->rm = NULL;
        for (uint32_t n = 0; n < b->n; n++)
            if (b->m[n])
                rr_debt_unref(rr_take(b->m[n]->debt));
    }
    rm->batches = NULL;
    rm->n_outgoing = 0;
}

/* --- messages that come ---------------------------------------------------------------------- */

/* A system call is too much for each message. */
static uint64_t rtt_of(struct via *v)
{
    uint64_t now = rr_now_ns();

    if (!v->rtt_at_ns || now - v->rtt_at_ns > RTT_NS) {
        v->rtt_ns = rr_net_peer_rtt_ns(v->peer);
        v->rtt_at_ns = now;
    }
    return v->rtt_ns;
}

void rr_nodes_ack(struct remote *rm, struct ack ack)
{
    for (size_t n = 0; n < rm->nodes->n_vias; n++)
        if (rm->nodes->vias[n]->id == (ack.link & ~RR_ACK_NODE))
            rr_net_ack(rm->nodes->vias[n]->peer, ack.seq, ack.target);
}

static bool window_is_sound(const struct rr_net_packet *p)
{
    return (p->slot_bytes == RR_SLOT_SMALL || p->slot_bytes == RR_SLOT_LARGE) &&
           p->window % p->slot_bytes == 0 && p->window >= RR_WINDOW_BASE &&
           p->window <= RR_WINDOW_END - p->slot_bytes && p->offset <= p->slot_bytes &&
           p->len <= p->slot_bytes - p->offset;
}

/* Which edge it is for, if it may come over that to this process from @peer; else -1. */
static int edge_for(const struct nodes *nodes, const struct rr_net_peer *peer,
                    const struct rr_net_packet *p, const struct rr_net_target *t)
{
    const struct rr_workflow *wf = nodes->wf;
    char *const *allow;
    int edge;

    if (wf->here == RR_NODE_HERE && strcmp(t->to, result_name) == 0)
        return rr_node_of(wf, wf->result) == RR_NODE_HERE ? -1 : (int)wf->n_edges;
    if (wf->here == RR_NODE_HERE && strcmp(t->to, letters_name) == 0)
        return p->status < 0 || p->status >= (int)wf->n_edges ? -1 : (int)wf->n_edges + 1;
    /* of a chain it is not known where it comes from */
    edge = find_edge(nodes, wf->chain ? nodes->names[0].from : t->from, t->to);
    if (edge < 0 || rr_node_of(wf, wf->edges[edge].to) != wf->here ||
        rr_edge_channel(wf, &wf->edges[edge]) != RR_CHANNEL_NETWORK)
        return -1;
    allow = wf->functions[wf->edges[edge].to].allow;
    if (!allow)
        return edge;
    for (; *allow; allow++)
        if (rr_net_peer_is(peer, *allow))
            return edge;
    return -1;
}

static int refuse(struct rr_error *err, const struct rr_net_packet *p)
{
    return rr_error_set(err, RR_E_INVALID,
                        "let the sender's identity into its `allow`, or correct "
                        "the sender",
                        "a message from '%s' may not come to '%s'", p->targets[0].from,
                        p->targets[0].to);
}

static int on_place(void *user, struct rr_net_peer *peer, const struct rr_net_packet *p,
                    struct rr_region **ret, struct rr_error *err)
{
    struct nodes *nodes = user;

    for (uint32_t n = 0; n < p->n_targets; n++)
        if (edge_for(nodes, peer, p, &p->targets[n]) < 0)
            return refuse(err, p);
    if (!window_is_sound(p))
        return rr_error_set(err, RR_E_INVALID, "restart it",
                            "a message names a window that is none");
    /* whether there is such a session is not known yet: on_up() may be still to come */
    return rr_region_get(nodes->base->arena, RR_MEMFD, p->slot_bytes, p->offset + p->len, 0, ret,
                         err);
}

/* @p's region is moved, or put. NULL: without memory. */
static struct message *to_message(struct via *v, struct rr_net_packet *p)
{
    struct message *m = rr_message_new();
    uint64_t now = rr_now_ns();

    if (!m || rr_message_fill(m, p->meta, p->meta_len, p->data, p->len) < 0) {
        rr_message_free(m);
        rr_region_put(rr_take(p->region));
        return NULL;
    }
    m->region = rr_take(p->region);
    m->len = p->len;
    m->offset = p->data ? 0 : p->offset;
    m->window = p->window;
    m->slot_bytes = p->slot_bytes;
    m->fixed = p->fixed;
    m->copied_bytes += p->copied_bytes;
    m->path = p->data ? RR_PATH_COPY : RR_PATH_MOVE;
    m->run = p->run;
    m->status = p->status;
    m->deadline_ns = p->deadline_ns ? now + rr_min(p->deadline_ns, MAX_DEADLINE_NS) : 0;
    m->sent_ns = now - p->age_ns - rtt_of(v) / 2;
    return m;
}

static void arrived(struct remote *rm, const struct via *v, struct message *m, int edge,
                    const struct rr_net_packet *p, uint32_t n)
{
    struct ack ack = {.link = v->id | RR_ACK_NODE, .seq = p->seq, .target = n};
    struct rr_error err;

    m->edge = edge;
    m->id = p->targets[n].id;
    m->attempt = p->targets[n].attempt;
    if (!rr_remote_at_least_once(rm, edge)) {
        rr_net_ack(v->peer, p->seq, n); /* that it has come is all that its sender waits for */
        ack.link = 0;
    }
    if (rr_remote_arrived(rm, m, ack, &err) && !rm->arrival.code)
        rm->arrival = err;
}

/* Its peer has broken a rule, or there is no memory: it comes again if it is to. */
static void drop(struct rr_net_peer *peer, struct rr_net_packet *p, const struct rr_error *why)
{
    rr_log(1, "%s: %s", rr_net_peer_address(peer), why->text);
    rr_region_put(rr_take(p->region));
    rr_net_peer_reset(peer, why);
}

static void on_message(void *user, struct rr_net_peer *peer, struct rr_net_packet *p)
{
    struct nodes *nodes = user;
    struct via *v = rr_net_peer_data(peer);
    struct rr_worker *w = find_session(nodes, p->session);
    int edges[RR_WIRE_MAX_TARGETS];
    struct message *m;
    struct rr_error err;
    bool good = v && window_is_sound(p) && rr_meta_is_sound(p->meta, p->meta_len);

    for (uint32_t n = 0; n < p->n_targets && good; n++) {
        edges[n] = edge_for(nodes, peer, p, &p->targets[n]);
        good = edges[n] >= 0;
    }
    if (!good) {
        refuse(&err, p);
        drop(peer, p, &err);
        return;
    }
    if (!w && nodes->serving && !has_ended(nodes, p->session)) {
        w = open_session(nodes, p->session, &err);
        if (!w) {
            drop(peer, p, &err);
            return;
        }
    }
    if (!w) { /* of a session that is over */
        rr_region_put(rr_take(p->region));
        for (uint32_t n = 0; n < p->n_targets; n++)
            rr_net_ack(peer, p->seq, n);
        return;
    }
    m = to_message(v, p);
    if (!m) {
        rr_error_no_memory(&err);
        drop(peer, p, &err);
        return;
    }
    for (uint32_t n = 0; n < p->n_targets; n++) {
        struct message *one = n + 1 < p->n_targets ? rr_message_share(m) : rr_take(m);

        if (one)
            arrived(w->remote, v, one, edges[n], p, n);
        else if (!w->remote->arrival.code)
            rr_error_no_memory(&w->remote->arrival);
    }
}

/* --- life ------------------------------------------------------------------------------------ */

static void on_tick(void *user)
{
    struct nodes *nodes = user;
    struct rr_error err;

    if (rr_net_pump(nodes->net, false, &err) < 0)
        rr_log(1, "%s", err.text);
}

static int open_net(struct nodes *nodes, struct rr_error *err)
{
    struct rr_wire_text texts[6] = {{.key = "host"},   {.key = "workflow"},
                                    {.key = "digest"}, {.key = "incarnation"},
                                    {.key = "node"},   {.key = "session"}};
    bool says_next = nodes->serving && nodes->wf->chain;
    const struct rr_worker *w = nodes->base;
    struct rr_net_options o = {
        .events = {.place = on_place,
                   .message = on_message,
                   .control = on_control,
                   .admit = on_admit,
                   .up = on_up,
                   .down = on_down,
                   .done = on_done,
                   .ready = on_ready},
        .user = nodes,
        .plain = w->plain,
        .texts = texts,
        .n_texts = nodes->serving && !says_next ? 5 : 6,
        .window_messages = nodes->wf->queue_messages,
        .window_bulk_bytes = nodes->wf->queue_bytes,
    };

    if (!w->network_only)
        rr_near_host(nodes->host);
    snprintf(texts[0].value, sizeof(texts[0].value), "%s", nodes->host);
    if (w->tls)
        o.tls = *w->tls;
    for (size_t n = 0; n < nodes->wf->n_nodes; n++)
        o.any_host = o.any_host || nodes->wf->nodes[n].identity;
    snprintf(texts[1].value, sizeof(texts[1].value), "%s", nodes->wf->name);
    snprintf(texts[2].value, sizeof(texts[2].value), "%s", nodes->digest);
    snprintf(texts[3].value, sizeof(texts[3].value), "%s", nodes->incarnation);
    snprintf(texts[4].value, sizeof(texts[4].value), "%s",
             nodes->serving ? node_name(nodes->wf, nodes->wf->here) : "");
    snprintf(texts[5].value, sizeof(texts[5].value), "%s", nodes->session);
    if (says_next) {
        snprintf(texts[5].key, sizeof(texts[5].key), "next");
        snprintf(texts[5].value, sizeof(texts[5].value), "%s", nodes->wf->nodes[0].next);
    }
    return rr_net_new(&o, &nodes->net, err);
}

int rr_nodes_new(struct rr_worker *base, bool serving, struct nodes **ret, struct rr_error *err)
{
    struct nodes *nodes = calloc(1, sizeof(*nodes));
    uint8_t random[2 * RR_SESSION_BYTES];
    int r = 0;

    if (!nodes)
        return rr_error_no_memory(err);
    nodes->base = base;
    nodes->wf = base->wf;
    nodes->serving = serving;
    nodes->dialed = calloc(nodes->wf->n_nodes, sizeof(struct via *));
    nodes->sessions = calloc(1, sizeof(struct rr_worker *));
    if (!nodes->dialed || !nodes->sessions || name_edges(nodes) < 0 ||
        RAND_bytes(random, sizeof(random)) != 1 || rr_workflow_digest(nodes->wf, nodes->digest) < 0)
        r = rr_error_no_memory(err);
    if (r == 0) {
        rr_hex(random, RR_SESSION_BYTES, nodes->session);
        rr_hex(random + RR_SESSION_BYTES, RR_SESSION_BYTES, nodes->incarnation);
        r = open_net(nodes, err);
    }
    if (r) {
        rr_nodes_free(nodes);
        return r;
    }
    if (!serving) {
        memcpy(base->remote->session, random, RR_SESSION_BYTES);
        nodes->sessions[nodes->n_sessions++] = base;
    }
    rr_engine_set_tick(base->engine, TICK_NS, on_tick, nodes);
    *ret = nodes;
    return 0;
}

void rr_nodes_free(struct nodes *nodes)
{
    if (!nodes)
        return;
    if (nodes->net)
        rr_engine_set_tick(nodes->base->engine, 0, NULL, NULL);
    rr_net_free(nodes->net);
    while (nodes->n_vias > 0)
        via_free(nodes->vias[0]);
    while (nodes->serving && nodes->n_sessions > 0)
        rr_session_free(nodes->sessions[--nodes->n_sessions]);
    free(nodes->sessions);
    free(nodes->vias);
    free(nodes->dialed);
    free(nodes->names);
    free(nodes->by_name);
    free(nodes);
}

struct rr_net *rr_nodes_net(struct nodes *nodes)
{
    return nodes->net;
}

struct rr_worker *rr_nodes_base(struct nodes *nodes)
{
    return nodes->base;
}

bool rr_nodes_poll(struct nodes *nodes)
{
    struct rr_error err;

    return rr_net_poll(nodes->net, &err) != 0;
}

int rr_nodes_pump(struct nodes *nodes, struct rr_error *err)
{
    int n = rr_net_pump(nodes->net, true, err);

    return n < 0 ? -1 : n;
}
