/* SPDX-License-Identifier: Apache-2.0 */
/* Walks the tree in order -> text: its depth, then "WORD COUNT" lines. */
#include <roadrunner.h>

#include "tree.h"

static char *print(char *p, const struct node *n)
{
    if (!n)
        return p;
    p = print(p, n->left);
    p += sprintf(p, "%s %zu\n", n->word, n->n_seen);
    return print(p, n->right);
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len < sizeof(struct tree))
        return 1;
    const struct tree *t = in.data;
    /* A line is its word, which the message holds too, and at most 12 bytes more. */
    char *out = rr_alloc("out", in.len + 12 * (uint64_t)t->n_nodes + 64);
    if (!out)
        return 2;
    char *p = out + sprintf(out, "# %zu words, depth %zu\n", t->n_nodes, tree_depth(t->root));
    p = print(p, t->root);
    return rr_return(out, (uint64_t)(p - out));
}
