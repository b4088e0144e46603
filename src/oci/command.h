/* SPDX-License-Identifier: Apache-2.0 */
/* oci: between the files of the command `roadrunner-oci`. */
#ifndef RR_OCI_COMMAND_H
#define RR_OCI_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "oci/oci.h"

/* A command line: global options, a command, its options, and words. Strings are borrowed. */
struct call {
    const char *root, *log; /* log: NULL: none */
    const char *domain;     /* NULL: none */
    bool log_json;
    char **argv; /* what the runtime is started with; [0] is set by call_exec() */
    size_t n, room;
    size_t rest; /* argv[rest] is the first after the command */
    const char *command, *id;
    char runtime[4096];
};

void call_add(struct call *c, const char *word);
/* Replace or remove (@value NULL) a command's option; adds it right after the command's name. */
void call_set(struct call *c, const char *name, const char *short_name, const char *value);
/* Value of a command's option, or NULL. */
const char *call_get(const struct call *c, const char *name, const char *short_name);
bool call_flag(const struct call *c, const char *name, const char *short_name);
/* First word that is neither an option nor an option's value: argv index; 0: none. */
size_t call_word(const struct call *c, size_t from);
/* Become the runtime. Returns the exit status when that fails. */
int call_exec(struct call *c);
/* Run it and collect its output (@ret: owned, free(); NULL: not wanted). Returns its status. */
int call_run(struct call *c, char **ret, bool quiet);
/* Tell @err on stderr and in the log; returns the exit status. */
int call_fail(const struct call *c, const struct rr_error *err);

/* The commands that are more than the runtime's own; each returns the exit status. */
int command_create(struct call *c);
int command_exec(struct call *c);
int command_delete(struct call *c);
int command_state(struct call *c);
int command_features(struct call *c);
/* checkpoint and restore: refused for Wasm containers. */
int command_checkpoint(struct call *c);
int command_restore(struct call *c);

#endif
