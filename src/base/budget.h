/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base: how much memory a trust domain has and may have. Whoever takes memory on a domain's behalf
 * takes it from the budget first and gives it back in the end.
 */
#ifndef RR_BASE_BUDGET_H
#define RR_BASE_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Of one process, which may die without giving anything back. */
struct rr_budget_share {
    _Alignas(64) _Atomic uint64_t used_bytes;
};

struct rr_budget {
    uint64_t limit_bytes;           /* 0: none, nothing is counted */
    struct rr_budget_share *shares; /* owned, in memory that children share */
    struct rr_budget_share *own;    /* of this process: the first, until it chooses another */
    size_t n_shares;
};

/* 0 or -ENOMEM. @n_shares: of the processes that will share it. */
int rr_budget_init(struct rr_budget *b, uint64_t limit_bytes, size_t n_shares);
void rr_budget_deinit(struct rr_budget *b);
/* False: it would be more than the limit, and nothing was taken. @b may be NULL. Any thread. */
bool rr_budget_take(struct rr_budget *b, uint64_t bytes);
void rr_budget_give(struct rr_budget *b, uint64_t bytes);
uint64_t rr_budget_used(const struct rr_budget *b);
/* What may still be taken. */
uint64_t rr_budget_left(const struct rr_budget *b);
/* Say that @bytes could not be taken. Return: RR_E_SYSTEM. */
int rr_budget_refuse(const struct rr_budget *b, uint64_t bytes, struct rr_error *err);

/* Memory of this machine, or less where control groups say so, in bytes. */
uint64_t rr_machine_memory(void);
/* The same of another file system: @root has proc/self/cgroup and sys/fs/cgroup. */
uint64_t rr_cgroup_memory(const char *root);

#endif
