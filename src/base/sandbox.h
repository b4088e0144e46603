#ifndef RR_BASE_SANDBOX_H
#define RR_BASE_SANDBOX_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "base/error.h"
struct rr_sandbox_path { const char *path; bool writable; };
struct rr_sandbox_options { const struct rr_sandbox_path *paths; size_t n_paths; uid_t uid; gid_t gid; uint64_t max_files, max_memory_bytes; };
struct rr_sandbox_report { bool no_new_privs, caps_dropped, seccomp, landlock; int landlock_abi; uid_t uid; };
static inline int rr_sandbox_enter(const struct rr_sandbox_options *o, struct rr_sandbox_report *ret, struct rr_error *err) { (void)o; (void)ret; (void)err; return 0; }
#endif
