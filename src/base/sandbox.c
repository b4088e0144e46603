/* SPDX-License-Identifier: Apache-2.0 */
#include "base/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"

#define INT 0xffffffffu /* the kernel looks at no more of an int */
#define CLONE_OWN_NS                                                                          \
    ((uint64_t)(CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | \
                CLONE_NEWPID | CLONE_NEWNET))

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif

/* Allowed if the argument, masked, has this value. Several of one call: any of them. */
struct masked {
    int call;
    unsigned int arg;
    uint64_t mask, value;
};

/* --- sanitizer builds: all that is relaxed for them ------------------------------------------ */

#if defined(__SANITIZE_ADDRESS__)
#define LEAKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LEAKS 1
#endif
#endif

#if defined(LEAKS) || defined(__SANITIZE_THREAD__)
#define SHADOWED 1 /* their shadow is private and writable, of terabytes: no limit on memory */
#endif

#ifdef LEAKS
/* To look for leaks at exit, a second process that shares our memory stops all threads with
 * ptrace, whose list it reads from /proc. */
static const int relaxed[] = {SCMP_SYS(ptrace), SCMP_SYS(wait4), SCMP_SYS(getdents)};
static const struct masked relaxed_masked[] = {
    {SCMP_SYS(clone), 0, CLONE_VM | CLONE_UNTRACED, CLONE_VM | CLONE_UNTRACED},
    {SCMP_SYS(prctl), 0, INT, PR_SET_DUMPABLE},
    {SCMP_SYS(prctl), 0, INT, PR_SET_PTRACER},
};
static const struct rr_sandbox_path relaxed_paths[] = {{"/proc", false}};
static const size_t n_relaxed = RR_ARRAY_LEN(relaxed),
                    n_relaxed_masked = RR_ARRAY_LEN(relaxed_masked),
                    n_relaxed_paths = RR_ARRAY_LEN(relaxed_paths);
#else
static const int relaxed[1];
static const struct masked relaxed_masked[1];
static const struct rr_sandbox_path relaxed_paths[1];
static const size_t n_relaxed, n_relaxed_masked, n_relaxed_paths;
#endif

/* --- system calls ---------------------------------------------------------------------------- */

static const int allowed[] = {
    /* memory; mmap and mprotect below */
    SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(mincore),
    SCMP_SYS(membarrier), SCMP_SYS(memfd_create),
    /* threads; clone below */
    SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(futex), SCMP_SYS(futex_waitv),
    SCMP_SYS(set_robust_list), SCMP_SYS(get_robust_list), SCMP_SYS(rseq), SCMP_SYS(set_tid_address),
    SCMP_SYS(getcpu), SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(sched_getparam),
    SCMP_SYS(sched_getscheduler), SCMP_SYS(sched_getattr), SCMP_SYS(sched_get_priority_max),
    SCMP_SYS(sched_get_priority_min), SCMP_SYS(sched_rr_get_interval),
    /* signals; kill and tgkill below */
    SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigpending), SCMP_SYS(rt_sigsuspend), SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack), SCMP_SYS(signalfd4), SCMP_SYS(restart_syscall), SCMP_SYS(pause),
    /* time */
    SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(times), SCMP_SYS(timer_create),
    SCMP_SYS(timer_settime), SCMP_SYS(timer_gettime), SCMP_SYS(timer_getoverrun),
    SCMP_SYS(timer_delete), SCMP_SYS(timerfd_create), SCMP_SYS(timerfd_settime),
    SCMP_SYS(timerfd_gettime),
    /* who and where we are */
    SCMP_SYS(getpid), SCMP_SYS(getppid), SCMP_SYS(gettid), SCMP_SYS(getuid), SCMP_SYS(geteuid),
    SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(getresuid), SCMP_SYS(getresgid),
    SCMP_SYS(getgroups), SCMP_SYS(capget), SCMP_SYS(getrusage), SCMP_SYS(getrlimit),
    SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(getrandom),
    /* descriptors; fcntl and ioctl below */
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev), SCMP_SYS(pread64),
    SCMP_SYS(pwrite64), SCMP_SYS(preadv), SCMP_SYS(pwritev), SCMP_SYS(preadv2), SCMP_SYS(pwritev2),
    SCMP_SYS(lseek), SCMP_SYS(close), SCMP_SYS(close_range), SCMP_SYS(dup), SCMP_SYS(dup2),
    SCMP_SYS(dup3), SCMP_SYS(pipe), SCMP_SYS(pipe2), SCMP_SYS(poll), SCMP_SYS(ppoll),
    SCMP_SYS(select), SCMP_SYS(pselect6), SCMP_SYS(epoll_create), SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_pwait2),
    SCMP_SYS(eventfd), SCMP_SYS(eventfd2),
    /* files: which ones is for Landlock to say. Not truncate(), which Landlock knows since ABI 3 */
    SCMP_SYS(open), SCMP_SYS(openat), SCMP_SYS(openat2), SCMP_SYS(stat), SCMP_SYS(lstat),
    SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(statfs), SCMP_SYS(fstatfs),
    SCMP_SYS(access), SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(readlink),
    SCMP_SYS(readlinkat), SCMP_SYS(getcwd), SCMP_SYS(getdents64), SCMP_SYS(mkdir),
    SCMP_SYS(mkdirat), SCMP_SYS(rmdir), SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rename),
    SCMP_SYS(renameat), SCMP_SYS(renameat2), SCMP_SYS(link), SCMP_SYS(linkat), SCMP_SYS(symlink),
    SCMP_SYS(symlinkat), SCMP_SYS(utimensat), SCMP_SYS(ftruncate), SCMP_SYS(fallocate),
    SCMP_SYS(fadvise64), SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(sync_file_range),
    SCMP_SYS(flock),
    /* sockets; socket and socketpair below */
    SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(accept), SCMP_SYS(accept4), SCMP_SYS(connect),
    SCMP_SYS(sendto), SCMP_SYS(recvfrom), SCMP_SYS(sendmsg), SCMP_SYS(recvmsg), SCMP_SYS(sendmmsg),
    SCMP_SYS(recvmmsg), SCMP_SYS(shutdown), SCMP_SYS(getsockname), SCMP_SYS(getpeername),
    SCMP_SYS(getsockopt), SCMP_SYS(setsockopt)};

/* Nothing of ours calls these. Who does is not a guest that goes wrong, but an intruder. */
static const int killed[] = {
    /* other programs and processes */
    SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(ptrace), SCMP_SYS(process_vm_readv),
    SCMP_SYS(process_vm_writev),
    /* the kernel itself */
    SCMP_SYS(kexec_load), SCMP_SYS(kexec_file_load), SCMP_SYS(init_module), SCMP_SYS(finit_module),
    SCMP_SYS(delete_module), SCMP_SYS(bpf), SCMP_SYS(userfaultfd), SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register), SCMP_SYS(perf_event_open),
    /* another view of the system */
    SCMP_SYS(mount), SCMP_SYS(umount2), SCMP_SYS(mount_setattr), SCMP_SYS(move_mount),
    SCMP_SYS(open_tree), SCMP_SYS(fsopen), SCMP_SYS(fsmount), SCMP_SYS(fsconfig), SCMP_SYS(fspick),
    SCMP_SYS(unshare), SCMP_SYS(setns), SCMP_SYS(pivot_root), SCMP_SYS(chroot),
    SCMP_SYS(open_by_handle_at),
    /* keys */
    SCMP_SYS(keyctl), SCMP_SYS(add_key), SCMP_SYS(request_key)};

static const struct masked allowed_masked[] = {
    /*
     * The engine compiles a small module of its own when a guest first reads a file, and modules
     * at all when it is confined before they are loaded: it writes code, and then makes it
     * executable with mprotect. So new code cannot be ruled out, but no page is ever both, and
     * nothing is mapped executable at once.
     */
    {SCMP_SYS(mmap), 2, PROT_EXEC, 0},
    {SCMP_SYS(mprotect), 2, PROT_EXEC, 0},
    {SCMP_SYS(mprotect), 2, PROT_EXEC | PROT_WRITE, PROT_EXEC},
    {SCMP_SYS(clone), 0, CLONE_THREAD | CLONE_OWN_NS, CLONE_THREAD},
    {SCMP_SYS(socket), 0, INT, AF_UNIX},
    {SCMP_SYS(socketpair), 0, INT, AF_UNIX},
    {SCMP_SYS(prlimit64), 2, UINT64_MAX, 0}, /* only to read */
    {SCMP_SYS(fcntl), 1, INT, F_DUPFD},
    {SCMP_SYS(fcntl), 1, INT, F_DUPFD_CLOEXEC},
    {SCMP_SYS(fcntl), 1, INT, F_GETFD},
    {SCMP_SYS(fcntl), 1, INT, F_SETFD},
    {SCMP_SYS(fcntl), 1, INT, F_GETFL},
    {SCMP_SYS(fcntl), 1, INT, F_SETFL},
    {SCMP_SYS(fcntl), 1, INT, F_ADD_SEALS},
    {SCMP_SYS(fcntl), 1, INT, F_GET_SEALS},
    {SCMP_SYS(fcntl), 1, INT, F_GETPIPE_SZ},
    {SCMP_SYS(fcntl), 1, INT, F_SETPIPE_SZ},
    {SCMP_SYS(ioctl), 1, INT, FIONREAD},
    {SCMP_SYS(ioctl), 1, INT, FIONBIO},
    {SCMP_SYS(ioctl), 1, INT, FIOCLEX},
    {SCMP_SYS(ioctl), 1, INT, FIONCLEX},
    {SCMP_SYS(ioctl), 1, INT, TCGETS}, /* isatty() */
    {SCMP_SYS(prctl), 0, INT, PR_SET_NAME},
    {SCMP_SYS(prctl), 0, INT, PR_SET_PDEATHSIG}, /* a change of user has cleared it */
    {SCMP_SYS(prctl), 0, INT, PR_GET_NAME},
    {SCMP_SYS(prctl), 0, INT, PR_SET_VMA}, /* names of mappings, which glibc sets */
    {SCMP_SYS(prctl), 0, INT, PR_GET_DUMPABLE},
    {SCMP_SYS(prctl), 0, INT, PR_GET_NO_NEW_PRIVS},
    {SCMP_SYS(prctl), 0, INT, PR_GET_SECCOMP},
    {SCMP_SYS(prctl), 0, INT, PR_CAPBSET_READ},
};

static bool is_relaxed(int call)
{
    for (size_t i = 0; i < n_relaxed; i++)
        if (relaxed[i] == call)
            return true;
    return false;
}

static int add_calls(scmp_filter_ctx ctx, uint32_t action, const int *calls, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        if (action == SCMP_ACT_ALLOW || !is_relaxed(calls[i]))
            r = seccomp_rule_add(ctx, action, calls[i], 0);
    return r;
}

static int add_masked(scmp_filter_ctx ctx, const struct masked *m, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, m[i].call, 1,
                             SCMP_CMP(m[i].arg, SCMP_CMP_MASKED_EQ, m[i].mask, m[i].value));
    return r;
}

static int fill_filter(scmp_filter_ctx ctx)
{
    const struct masked own[] = {
        {SCMP_SYS(kill), 0, INT, (uint32_t)getpid()},
        {SCMP_SYS(tgkill), 0, INT, (uint32_t)getpid()}, /* abort(), raise() */
    };
    const struct scmp_arg_cmp own_sigio[] = {
        /* see base/wait.c; not other processes, whom it ends */
        SCMP_CMP(1, SCMP_CMP_MASKED_EQ, INT, F_SETOWN),
        SCMP_CMP(2, SCMP_CMP_MASKED_EQ, INT, (uint32_t)getpid()),
    };
    int r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);

    if (r == 0) /* calls of another architecture, 32-bit ones too */
        r = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (r == 0) /* a tree: a few comparisons in place of hundreds, at each mmap */
        r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (r == 0)
        r = add_calls(ctx, SCMP_ACT_ALLOW, allowed, RR_ARRAY_LEN(allowed));
    if (r == 0)
        r = add_calls(ctx, SCMP_ACT_ALLOW, relaxed, n_relaxed);
    if (r == 0)
        r = add_calls(ctx, SCMP_ACT_KILL_PROCESS, killed, RR_ARRAY_LEN(killed));
    if (r == 0)
        r = add_masked(ctx, allowed_masked, RR_ARRAY_LEN(allowed_masked));
    if (r == 0)
        r = add_masked(ctx, relaxed_masked, n_relaxed_masked);
    if (r == 0)
        r = add_masked(ctx, own, RR_ARRAY_LEN(own));
    if (r == 0)
        r = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 2, own_sigio);
    /* Its flags are in memory, where a filter cannot look. glibc falls back to clone. */
    if (r == 0)
        r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return r;
}

static int filter_calls(struct rr_sandbox_report *report, struct rr_error *err)
{
    scmp_filter_ctx ctx;
    int r;

    if (prctl(PR_GET_SECCOMP) < 0 && errno == EINVAL)
        return 0;
    ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    r = ctx ? fill_filter(ctx) : -ENOMEM;
    if (r == 0)
        r = seccomp_load(ctx);
    seccomp_release(ctx);
    if (r < 0)
        return rr_error_set(err, RR_E_SYSTEM, "see whether this kernel has SECCOMP_FILTER",
                            "cannot filter system calls: %s", strerror(-r));
    report->seccomp = true;
    return 0;
}

/* --- files ----------------------------------------------------------------------------------- */

/* What headers older than the kernel do not know. */
#define FS_TRUNCATE (1ull << 14)
#define FS_IOCTL_DEV (1ull << 15)
#define NET_TCP 3ull /* bind, connect */
#define SCOPES 3ull  /* abstract sockets and signals: none to processes outside */

struct ruleset {
    uint64_t fs, net, scoped; /* a kernel takes a longer one than it knows if the rest is 0 */
};

#define FS_READ (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define FS_WRITE                                                                                  \
    (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |                              \
     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | \
     LANDLOCK_ACCESS_FS_REFER | FS_TRUNCATE)
#define FS_OF_FILE (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE)

static struct ruleset ruleset_of(int abi)
{
    struct ruleset set = {.fs = LANDLOCK_ACCESS_FS_REFER - 1}; /* ABI 1: all rights below it */

    if (abi >= 2)
        set.fs |= LANDLOCK_ACCESS_FS_REFER;
    if (abi >= 3)
        set.fs |= FS_TRUNCATE;
    if (abi >= 4)
        set.net = NET_TCP;
    if (abi >= 5)
        set.fs |= FS_IOCTL_DEV;
    if (abi >= 6)
        set.scoped = SCOPES;
    return set;
}

static int allow_path(int ruleset_fd, uint64_t handled, const struct rr_sandbox_path *path,
                      struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = open(path->path, O_PATH | O_CLOEXEC);
    struct landlock_path_beneath_attr rule = {
        .allowed_access = handled & (path->writable ? FS_READ | FS_WRITE : FS_READ),
        .parent_fd = fd};
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return rr_error_set(err, RR_E_NOINPUT, "check the folders of this function",
                            "cannot open %s: %s", path->path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        rule.allowed_access &= FS_OF_FILE;
    if (syscall(SYS_landlock_add_rule, ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "report this with the kernel version",
                            "cannot allow %s to the function: %s", path->path, strerror(errno));
    return 0;
}

/* The paths are opened now, while we may still be root. @ret_fd: owned, also on failure; left
 * as it is where there is no Landlock. */
static int make_ruleset(const struct rr_sandbox_options *o, struct rr_sandbox_report *report,
                        int *ret_fd, struct rr_error *err)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct ruleset set = ruleset_of((int)abi);
    int r = 0;

    /* not built in; not switched on; hidden by the profile of a container */
    if (abi < 0 && (errno == ENOSYS || errno == EOPNOTSUPP || errno == EPERM))
        return 0;
    if (abi > 0)
        *ret_fd = (int)syscall(SYS_landlock_create_ruleset, &set, sizeof(set), 0);
    if (*ret_fd < 0)
        return rr_error_set(err, RR_E_SYSTEM, "report this with the kernel version",
                            "cannot make a Landlock ruleset: %s", strerror(errno));
    for (size_t i = 0; i < o->n_paths && r == 0; i++)
        r = allow_path(*ret_fd, set.fs, &o->paths[i], err);
    for (size_t i = 0; i < n_relaxed_paths && r == 0; i++)
        r = allow_path(*ret_fd, set.fs, &relaxed_paths[i], err);
    if (r == 0)
        report->landlock_abi = (int)abi;
    return r;
}

static int confine_files(int ruleset_fd, struct rr_sandbox_report *report, struct rr_error *err)
{
    if (ruleset_fd < 0)
        return 0;
    if (syscall(SYS_landlock_restrict_self, ruleset_fd, 0) < 0)
        return rr_error_set(err, RR_E_SYSTEM, "the kernel nests 16 Landlock rulesets",
                            "cannot confine the process to its folders: %s", strerror(errno));
    report->landlock = true;
    return 0;
}

/* --- limits, users, capabilities ------------------------------------------------------------- */

static int refused(struct rr_error *err, const char *what)
{
    return rr_error_set(err, RR_E_SYSTEM,
                        "start the worker as root with all capabilities, or "
                        "as an ordinary user",
                        "cannot %s: %s", what, strerror(errno));
}

/* For good: soft and hard. More than the hard limit we have is not asked for. */
static int limit(__rlimit_resource_t resource, uint64_t max)
{
    struct rlimit l;

    if (getrlimit(resource, &l) < 0)
        return -1;
    l.rlim_max = rr_min(l.rlim_max, max);
    l.rlim_cur = l.rlim_max;
    return setrlimit(resource, &l);
}

static int set_limits(const struct rr_sandbox_options *o, struct rr_error *err)
{
    int r = limit(RLIMIT_CORE, 0);

    if (r == 0 && o->max_files)
        r = limit(RLIMIT_NOFILE, o->max_files);
#ifndef SHADOWED
    if (r == 0 && o->max_memory_bytes)
        r = limit(RLIMIT_DATA, o->max_memory_bytes);
#endif
    return r < 0 ? refused(err, "set limits") : 0;
}

static int become(const struct rr_sandbox_options *o, struct rr_error *err)
{
    if (geteuid() != 0 || o->uid == (uid_t)-1)
        return 0;
    if (setgroups(0, NULL) < 0)
        return refused(err, "leave the groups");
    if (o->gid != (gid_t)-1 && setresgid(o->gid, o->gid, o->gid) < 0)
        return refused(err, "change the group");
    if (setresuid(o->uid, o->uid, o->uid) < 0)
        return refused(err, "change the user");
    return 0;
}

/* The bounding set: what files could still give. Before the user changes, which takes the right
 * to change it; where that right is missing, PR_SET_NO_NEW_PRIVS says the same. */
static int drop_bounding(struct rr_error *err)
{
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
            return refused(err, "empty the bounding set of capabilities");
    return 0;
}

static int drop_capabilities(struct rr_sandbox_report *report, struct rr_error *err)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}, {0}};

    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return refused(err, "clear the ambient capabilities");
    if (syscall(SYS_capset, &header, none) < 0)
        return refused(err, "drop the capabilities");
    report->caps_dropped = true;
    return 0;
}

static int drop_privileges(const struct rr_sandbox_options *o, struct rr_sandbox_report *report,
                           struct rr_error *err)
{
    int r = drop_bounding(err);

    if (r == 0)
        r = become(o, err);
    if (r == 0)
        r = drop_capabilities(report, err);
    if (r)
        return r;
    /* after the change of user, which sets it */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return refused(err, "hide the process from debuggers");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return refused(err, "give up new privileges");
    report->no_new_privs = true;
    report->uid = getuid();
    return 0;
}

int rr_sandbox_enter(const struct rr_sandbox_options *o, struct rr_sandbox_report *ret,
                     struct rr_error *err)
{
    __attribute__((cleanup(rr_close_cleanup))) int ruleset_fd = -1;
    struct rr_sandbox_report report = {0};
    int r = make_ruleset(o, &report, &ruleset_fd, err);

    if (r == 0)
        r = set_limits(o, err);
    if (r == 0)
        r = drop_privileges(o, &report, err);
    if (r == 0)
        r = confine_files(ruleset_fd, &report, err);
    if (r == 0)
        r = filter_calls(&report, err);
    if (r == 0)
        *ret = report;
    return r;
}
