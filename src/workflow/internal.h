/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the files of workflow/ only:
 *   yaml.c    text -> tree of nodes with positions
 *   parse.c   tree -> struct rr_workflow
 *   check.c   graph rules: inputs, calls, cycles, order; files on disk
 *   layout.c  window addresses
 *   names.c   names, and the "did you mean" of hints
 */
#ifndef RR_WORKFLOW_INTERNAL_H
#define RR_WORKFLOW_INTERNAL_H

#include "workflow/workflow.h"

#define YAML_MAX_DEPTH 16
#define YAML_MAX_NODES (1u << 18)

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

struct yaml_node {
    enum yaml_kind kind;
    bool plain;       /* a scalar without quotes */
    const char *text; /* of a scalar; NUL-terminated, no NUL inside */
    size_t len;
    struct rr_pos pos;
    struct yaml_node *first, *next; /* children; of a map: key, value, key, value ... */
    size_t n_children;
};

struct yaml_block;
struct yaml_doc {
    struct yaml_block *blocks; /* owned: every node and text */
    size_t n_nodes;
    struct yaml_node *root; /* NULL: the text holds no document */
};

int rr_yaml_read(struct yaml_doc *doc, const char *file, const char *text, size_t len,
                 struct rr_error *err);
void rr_yaml_deinit(struct yaml_doc *doc);

/* What is known while a workflow is read; @wf is what comes out. */
struct reader {
    struct rr_workflow *wf;
    struct rr_error *err;
    size_t edges_room;
    bool isolated; /* functions that do not say */
    struct name_index {
        const char *name;
        int index;
    } *by_name;                           /* sorted, n_functions long */
    const struct yaml_node **calls_nodes; /* `calls` of each function or NULL */
};

/* Fill the reader's error with a position in the workflow file; returns @code. */
__attribute__((format(printf, 5, 6))) int rr_reader_fail(struct reader *r, enum rr_code code,
                                                         struct rr_pos pos, const char *hint,
                                                         const char *fmt, ...);
int rr_reader_no_memory(struct reader *r);

int rr_parse_tree(struct reader *r, const struct yaml_node *root);
int rr_check_graph(struct reader *r);
int rr_check_files(struct reader *r);
int rr_layout_assign(struct reader *r);

/* parse.c: append an edge; the strings are copied. 0 or an error already filled. */
struct rr_edge *rr_edge_add(struct reader *r, int from, const char *from_port, int to,
                            const char *to_port, struct rr_pos pos);

bool rr_name_valid(const char *name, size_t len);
/* Edit distance of two names, without regard to case; swapped neighbours count 1. */
unsigned int rr_name_distance(const char *a, const char *b);

/* Keeps the name nearest to @wanted of those offered; NULL when none is near. */
struct rr_nearest {
    const char *wanted, *best;
    unsigned int distance;
};
void rr_nearest_init(struct rr_nearest *n, const char *wanted);
void rr_nearest_offer(struct rr_nearest *n, const char *name);

#endif
