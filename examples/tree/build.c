/* SPDX-License-Identifier: Apache-2.0 */
/* Text -> a search tree of its words, in the order in which they come. */
#include <ctype.h>
#include <roadrunner.h>

#include "tree.h"

#define ALIGN(n) (((n) + _Alignof(struct node) - 1) & ~(_Alignof(struct node) - 1))

/* Takes a node for @word from the free end of the message, which moves. */
static struct node *node_new(char **end, const char *word, size_t len)
{
    struct node *n = (struct node *)*end;
    *n = (struct node){.n_seen = 0};
    memcpy(n->word, word, len);
    n->word[len] = '\0';
    *end += ALIGN(sizeof(*n) + len + 1);
    return n;
}

/* Returns the depth at which the word lies. */
static size_t tree_add(struct tree *t, char **end, const char *word, size_t len)
{
    struct node **at = &t->root;
    size_t depth = 1;
    for (; *at; depth++) {
        int order = strncmp(word, (*at)->word, len);
        if (order == 0 && (*at)->word[len] == '\0')
            break;
        at = order > 0 ? &(*at)->right : &(*at)->left;
    }
    if (!*at) {
        *at = node_new(end, word, len);
        t->n_nodes++;
    }
    (*at)->n_seen++;
    return depth;
}

/* No text needs more: every other character begins a word. */
static uint64_t room_for(uint64_t len)
{
    return sizeof(struct tree) + (len / 2 + 1) * ALIGN(sizeof(struct node) + 2) + len;
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    struct tree *t = rr_alloc("out", room_for(in.len));
    if (!t)
        return 2;
    *t = (struct tree){0};
    char *end = (char *)(t + 1);
    const char *text = in.data;
    size_t depth = 0;
    for (uint64_t i = 0; i < in.len;) {
        uint64_t from = i;
        while (i < in.len && isalnum((unsigned char)text[i]))
            i++;
        if (i == from) {
            i++;
            continue;
        }
        size_t d = tree_add(t, &end, text + from, i - from);
        depth = d > depth ? d : depth;
    }
    rr_logf(RR_INFO, "%zu words, depth %zu", t->n_nodes, depth);
    return rr_return(t, (uint64_t)(end - (char *)t));
}
