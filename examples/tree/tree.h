/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The message of this example: a binary search tree of words, made of plain C
 * pointers. All of it lies in one message buffer, this struct at its start.
 */
#ifndef TREE_H
#define TREE_H

#include <stddef.h>

struct node {
    struct node *left, *right;
    size_t n_seen;
    char word[]; /* NUL-terminated */
};

struct tree {
    struct node *root;
    size_t n_nodes;
};

static inline size_t tree_depth(const struct node *n)
{
    if (!n)
        return 0;
    size_t left = tree_depth(n->left), right = tree_depth(n->right);
    return 1 + (left > right ? left : right);
}

#endif
