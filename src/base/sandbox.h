/* SPDX-License-Identifier: Apache-2.0 */
/*
 * base: a process that hosts one function confines itself. It has no need of other files than its
 * function's folders, of other programs, users or networks; so when a guest breaks out of the
 * engine, it finds none. May call libc, libseccomp and the kernel.
 */
#ifndef RR_BASE_SANDBOX_H
#define RR_BASE_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct rr_sandbox_path {
    const char *path; /* a folder with what is below it, or one file */
    bool writable;
};

struct rr_sandbox_options {
    /* What the guest may reach (its folders) and what we need ourselves (the link folder). */
    const struct rr_sandbox_path *paths;
    size_t n_paths;
    /* To become, with no other groups, if we are root; (uid_t)-1 and (gid_t)-1: stay. */
    uid_t uid;
    gid_t gid;
    uint64_t max_files; /* descriptors; 0: leave */
    /*
     * Private writable memory (RLIMIT_DATA), 0: leave. Not RLIMIT_AS: that counts the gibibytes
     * that each linear memory reserves without a right to touch them. The windows of a message
     * count with their whole size, and shared memory not at all, so this stops a process that
     * runs wild; what a function may really use is for its cgroup to say.
     */
    uint64_t max_memory_bytes;
};

struct rr_sandbox_report {
    bool no_new_privs, caps_dropped, seccomp, landlock;
    int landlock_abi; /* the kernel's; 0: it has none, or a filter above us hides it */
    uid_t uid;        /* what we are now */
};

/**
 * rr_sandbox_enter() - confine this process for good
 * @o:   borrowed for the call
 * @ret: out: what took effect; untouched on failure
 * @err: what failed
 *
 * What the kernel lacks is left out and reported; a failure of what it has is an error, after
 * which the process is confined in part: end it.
 *
 * Descriptors that are open stay open and keep their rights: close first what a guest must not
 * reach. Afterwards no program can be started, no process made, and no way leads back. Files are
 * confined by what the kernel's Landlock knows: below the paths a file can be read (not run) and,
 * if writable, made, written, renamed, removed; no links to elsewhere, devices or sockets are made.
 * To look at names, sizes and times of other files is not prevented.
 *
 * Context: before any thread is made. The filter of system calls reaches all threads, but
 * capabilities and Landlock only the one that calls and those that it makes later.
 *
 * Return: 0; RR_E_NOINPUT for a path that cannot be opened; RR_E_SYSTEM.
 */
int rr_sandbox_enter(const struct rr_sandbox_options *o, struct rr_sandbox_report *ret,
                     struct rr_error *err);

#endif
