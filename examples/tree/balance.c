/* SPDX-License-Identifier: Apache-2.0 */
/* Walks the tree it was handed and turns its pointers round, in place, until it is balanced. */
#include <roadrunner.h>

#include "tree.h"

/* Day, Stout and Warren: rotate right until the tree is a list to the right ... */
static void flatten(struct node **at)
{
    while (*at) {
        struct node *n = *at, *left = n->left;
        if (left) {
            n->left = left->right;
            left->right = n;
            *at = left;
        } else {
            at = &n->right;
        }
    }
}

/* ... then rotate every second node of the list left, @n times. */
static void fold(struct node **at, size_t n)
{
    while (n-- > 0) {
        struct node *top = *at, *right = top->right;
        top->right = right->left;
        right->left = top;
        *at = right;
        at = &right->right;
    }
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0 || in.len < sizeof(struct tree))
        return 1;
    struct tree *t = in.data;
    size_t full = 1; /* nodes of the largest complete tree that is not larger than ours, + 1 */
    while (2 * full <= t->n_nodes + 1)
        full *= 2;
    flatten(&t->root);
    fold(&t->root, t->n_nodes + 1 - full);
    for (size_t n = (full - 1) / 2; n > 0; n /= 2)
        fold(&t->root, n);
    rr_logf(RR_INFO, "%zu words, depth %zu", t->n_nodes, tree_depth(t->root));
    return rr_return(t, in.len);
}
