/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The subset of YAML that a workflow needs: one document of maps, lists and
 * scalars. Built from the parser's events, so that depth, node count, aliases
 * and tags are bounded or refused before anything is built from them.
 */
#include <errno.h>
#include <libfyaml.h>
#include <stdlib.h>
#include <string.h>

#include "workflow/internal.h"

#define BLOCK_BYTES (64u << 10)

struct yaml_block {
    struct yaml_block *next;
    size_t used, size;
    _Alignas(16) char data[];
};

struct builder {
    struct yaml_doc *doc;
    const char *file;
    struct rr_error *err;
    struct fy_parser *parser;
    struct {
        struct yaml_node *node, *last; /* an open map or list and its newest child */
    } open[YAML_MAX_DEPTH];
    size_t depth;
    bool done; /* the document has ended */
};

static void *doc_alloc(struct yaml_doc *doc, size_t size)
{
    struct yaml_block *block = doc->blocks;
    void *p;

    size = (size + 15) & ~(size_t)15;
    if (!block || block->size - block->used < size) {
        size_t room = size > BLOCK_BYTES ? size : BLOCK_BYTES;

        block = malloc(sizeof(*block) + room);
        if (!block)
            return NULL;
        block->next = doc->blocks;
        block->used = 0;
        block->size = room;
        doc->blocks = block;
    }
    p = block->data + block->used;
    block->used += size;
    return p;
}

void rr_yaml_deinit(struct yaml_doc *doc)
{
    while (doc->blocks) {
        struct yaml_block *next = doc->blocks->next;

        free(doc->blocks);
        doc->blocks = next;
    }
    doc->root = NULL;
}

static int no_memory(struct builder *b)
{
    return rr_error_set(b->err, RR_E_SYSTEM, "free some memory and try again",
                        "not enough memory to read the workflow");
}

__attribute__((format(printf, 4, 5))) static int fail(struct builder *b, struct rr_pos pos,
                                                      const char *hint, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    rr_error_set(b->err, RR_E_INVALID, hint, "%s", text);
    rr_error_at(b->err, b->file, pos.line, pos.column);
    return RR_E_INVALID;
}

static struct rr_pos event_pos(struct fy_event *event)
{
    const struct fy_mark *mark = fy_event_start_mark(event);

    if (!mark)
        return (struct rr_pos){1, 1};
    return (struct rr_pos){(unsigned int)mark->line + 1, (unsigned int)mark->column + 1};
}

static int set_text(struct builder *b, struct yaml_node *node, struct fy_token *token)
{
    size_t len = 0;
    const char *text = token ? fy_token_get_text(token, &len) : "";
    char *copy;

    if (!text)
        return no_memory(b);
    if (memchr(text, '\0', len))
        return fail(b, node->pos, "remove the \\0", "a text holds a NUL character");
    copy = doc_alloc(b->doc, len + 1);
    if (!copy)
        return no_memory(b);
    memcpy(copy, text, len);
    copy[len] = '\0';
    node->text = copy;
    node->len = len;
    node->plain = !token || fy_token_scalar_style(token) == FYSS_PLAIN;
    return 0;
}

/* Hang a new node under the innermost open one; maps and lists become open themselves. */
static int add_node(struct builder *b, struct fy_event *event, enum yaml_kind kind)
{
    struct rr_pos pos = event_pos(event);
    struct yaml_node *node, *parent = b->depth ? b->open[b->depth - 1].node : NULL;

    /* What is left out, as in `key:`, has no place; what comes before it does. */
    if (parent && !fy_event_start_mark(event))
        pos = b->open[b->depth - 1].last ? b->open[b->depth - 1].last->pos : parent->pos;
    if (fy_event_get_anchor_token(event))
        return fail(b, pos, "write the value out where it is needed",
                    "anchors (&name) are not allowed in a workflow");
    if (fy_event_get_tag_token(event))
        return fail(b, pos, "remove the tag", "tags (!name) are not allowed in a workflow");
    if (++b->doc->n_nodes > YAML_MAX_NODES)
        return fail(b, pos, "split the workflow", "more than %u YAML nodes", YAML_MAX_NODES);
    if (parent && parent->kind == YAML_MAP && parent->n_children % 2 == 0 && kind != YAML_SCALAR)
        return fail(b, pos, "write `key: value`", "the key of a map must be a text");

    node = doc_alloc(b->doc, sizeof(*node));
    if (!node)
        return no_memory(b);
    *node = (struct yaml_node){.kind = kind, .pos = pos, .text = ""};
    if (kind == YAML_SCALAR) {
        int rc = set_text(b, node, fy_event_get_token(event));

        if (rc)
            return rc;
    } else if (b->depth == YAML_MAX_DEPTH) {
        return fail(b, pos, "a workflow needs 5 levels", "more than %d levels of nesting",
                    YAML_MAX_DEPTH);
    }
    if (!parent) {
        b->doc->root = node;
    } else {
        if (b->open[b->depth - 1].last)
            b->open[b->depth - 1].last->next = node;
        else
            parent->first = node;
        b->open[b->depth - 1].last = node;
        parent->n_children++;
    }
    if (kind != YAML_SCALAR) {
        b->open[b->depth].node = node;
        b->open[b->depth].last = NULL;
        b->depth++;
    }
    return 0;
}

static int compare_keys(const void *a, const void *b)
{
    const struct yaml_node *ka = *(const struct yaml_node *const *)a;
    const struct yaml_node *kb = *(const struct yaml_node *const *)b;
    int order = strcmp(ka->text, kb->text);

    if (order)
        return order;
    if (ka->pos.line != kb->pos.line)
        return ka->pos.line < kb->pos.line ? -1 : 1;
    return (ka->pos.column > kb->pos.column) - (ka->pos.column < kb->pos.column);
}

static int check_keys(struct builder *b, const struct yaml_node *map)
{
    size_t n = 0;
    const struct yaml_node **keys;
    int rc = 0;

    if (map->n_children < 4)
        return 0;
    keys = calloc(map->n_children / 2, sizeof(struct yaml_node *));
    if (!keys)
        return no_memory(b);
    for (const struct yaml_node *key = map->first; key && key->next; key = key->next->next)
        keys[n++] = key;
    qsort(keys, n, sizeof(struct yaml_node *), compare_keys);
    for (size_t i = 1; i < n && !rc; i++) {
        if (strcmp(keys[i - 1]->text, keys[i]->text) == 0)
            rc = fail(b, keys[i]->pos, "keep one of the two", "'%.100s' is already set in line %u",
                      keys[i]->text, keys[i - 1]->pos.line);
    }
    free(keys);
    return rc;
}

static int take_event(struct builder *b, struct fy_event *event)
{
    switch (event->type) {
    case FYET_MAPPING_START:
        return add_node(b, event, YAML_MAP);
    case FYET_SEQUENCE_START:
        return add_node(b, event, YAML_LIST);
    case FYET_SCALAR:
        return add_node(b, event, YAML_SCALAR);
    case FYET_ALIAS:
        return fail(b, event_pos(event), "write the value out where it is needed",
                    "aliases (*name) are not allowed in a workflow");
    case FYET_MAPPING_END:
        return check_keys(b, b->open[--b->depth].node);
    case FYET_SEQUENCE_END:
        b->depth--;
        return 0;
    case FYET_DOCUMENT_START:
        if (b->done)
            return fail(b, event_pos(event), "keep one workflow per file",
                        "a second YAML document begins here");
        return 0;
    case FYET_DOCUMENT_END:
        b->done = true;
        return 0;
    case FYET_NONE:
    case FYET_STREAM_START:
    case FYET_STREAM_END:
        return 0;
    }
    return 0;
}

static int syntax_error(struct builder *b, struct fy_diag *diag)
{
    void *iter = NULL;
    const struct fy_diag_error *e = fy_diag_errors_iterate(diag, &iter);
    struct rr_pos pos = {1, 1};

    if (e && e->line > 0)
        pos = (struct rr_pos){(unsigned int)e->line, (unsigned int)(e->column > 0 ? e->column : 1)};
    return fail(b, pos, "check indentation, quotes and brackets here and in the line before",
                "not valid YAML: %s", e && e->msg ? e->msg : "the text cannot be read");
}

static int read_events(struct builder *b, struct fy_diag *diag)
{
    struct fy_event *event;
    bool end = false;
    int rc = 0;

    while (!rc && !end && (event = fy_parser_parse(b->parser))) {
        end = event->type == FYET_STREAM_END;
        rc = take_event(b, event);
        fy_parser_event_free(b->parser, event);
    }
    if (!rc && !end)
        rc = syntax_error(b, diag);
    return rc;
}

/* Length of the UTF-8 character at @s that YAML allows in a file; 0 if there is none. */
static size_t character(const unsigned char *s, size_t left)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    unsigned long c = s[0];

    if (n == 1)
        return (c >= 0x20 && c != 0x7f) || c == '\t' || c == '\n' || c == '\r';
    if (s[0] < 0xc2 || s[0] > 0xf4 || left < n)
        return 0;
    c &= 0x7fu >> n;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (n == 2)
        return c >= 0xa0 || c == 0x85 ? n : 0;
    if (n == 3)
        return c >= 0x800 && (c < 0xd800 || c > 0xdfff) && c < 0xfffe ? n : 0;
    return c >= 0x10000 && c <= 0x10ffff ? n : 0;
}

/* What a file may hold is checked here, byte by byte, so the parser sees only clean text. */
static int check_text(struct builder *b, const char *text, size_t len)
{
    struct rr_pos pos = {1, 1};
    const char *hint = "save the file as UTF-8 text";

    if (len > RR_WORKFLOW_MAX_FILE)
        return fail(b, pos, "split the workflow", "the file is longer than %u bytes",
                    RR_WORKFLOW_MAX_FILE);
    for (size_t i = 0; i < len;) {
        size_t n = character((const unsigned char *)text + i, len - i);

        if (n == 0)
            return fail(b, pos, hint, "the byte 0x%02x is not allowed here",
                        (unsigned int)(unsigned char)text[i]);
        if (text[i] == '\n') {
            pos.line++;
            pos.column = 1;
        } else {
            pos.column++;
        }
        i += n;
    }
    return 0;
}

int rr_yaml_read(struct yaml_doc *doc, const char *file, const char *text, size_t len,
                 struct rr_error *err)
{
    struct builder b = {.doc = doc, .file = file, .err = err};
    struct fy_diag_cfg diag_cfg;
    struct fy_parse_cfg cfg = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_JSON_NONE};
    int rc;

    *doc = (struct yaml_doc){0};
    rc = check_text(&b, text, len);
    if (rc)
        return rc;

    fy_diag_cfg_default(&diag_cfg);
    diag_cfg.fp = NULL;
    diag_cfg.level = FYET_ERROR;
    cfg.diag = fy_diag_create(&diag_cfg);
    if (!cfg.diag)
        return no_memory(&b);
    fy_diag_set_collect_errors(cfg.diag, true);
    b.parser = fy_parser_create(&cfg);
    if (!b.parser || fy_parser_set_string(b.parser, text, len))
        rc = no_memory(&b);
    else
        rc = read_events(&b, cfg.diag);
    if (b.parser)
        fy_parser_destroy(b.parser);
    fy_diag_destroy(cfg.diag);
    if (rc)
        rr_yaml_deinit(doc);
    return rc;
}
