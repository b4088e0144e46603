/* SPDX-License-Identifier: Apache-2.0 */
/* cli: figures of runs, collected and shown: table, JSON, Chrome trace. */
#ifndef RR_CLI_REPORT_H
#define RR_CLI_REPORT_H

#include "cli/cli.h"

struct report;

struct report *
report_new(const struct rr_workflow *wf); /* NULL: out of memory; all others allow it */
void report_free(struct report *rp);
void report_hop(struct report *rp, const struct rr_hop *hop);
void report_span(struct report *rp, const struct rr_span *span);
void report_run(struct report *rp, uint64_t total_ns, uint64_t result_bytes);
void report_print(struct report *rp, struct rr_worker *w, FILE *f);
void report_json(struct report *rp, struct rr_worker *w, const struct rr_error *failure, FILE *f);
void report_failure(const struct rr_error *err, FILE *f);
/* -1 and errno when the file cannot be written. */
int report_trace(struct report *rp, const char *path);

#endif
