/* SPDX-License-Identifier: Apache-2.0 */
/* Each case runs in a process of its own, which confines itself and then tries something. */
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sandbox.h"
#include "base/util.h"
#include "base/wait.h"
#include "worker/worker.h"

#define SOMEBODY 65534
#define KILLED (-SIGSYS)
#define WRONG 201 /* exit statuses that are no errno */
#define NOT_ENTERED 202
#define MAX_FILES 200
#define PAYLOAD (600u << 10) /* large enough to be moved, not copied */

#if defined(__SANITIZE_ADDRESS__)
#define LEAKS_ARE_LOOKED_FOR 1 /* by means of ptrace, and with a look into /proc */
#else
#define LEAKS_ARE_LOOKED_FOR 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SHADOWED 1
#else
#define SHADOWED 0
#endif

/* base/ro, base/rw and base/link are allowed, base/secret is not. */
static char base[64], read_only[80], writable[80], links[80];
static char secret[80], abstract_name[64];
static bool was_root;
static int tcp_fd = -1; /* made before, so that the filter has no say */
static struct rr_sandbox_report report;

static const char *at(const char *folder, const char *name)
{
    static char path[4][160];
    static unsigned int n;
    char *p = path[n++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", folder, name);
    return p;
}

/* The outcome of a system call: 0 or errno. */
static int code(long r)
{
    return r < 0 ? errno : 0;
}

static int try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0644);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

/* --- files ----------------------------------------------------------------------------------- */

static int read_passwd(void)
{
    return try_open("/etc/passwd", O_RDONLY);
}

static int read_sibling(void)
{
    return try_open(secret, O_RDONLY);
}

static int read_upwards(void)
{
    return try_open(at(read_only, "../secret"), O_RDONLY);
}

static int read_by_link(void)
{
    return try_open(at(read_only, "link"), O_RDONLY);
}

static int read_memory_file(void)
{
    return try_open("/proc/self/mem", O_RDWR);
}

static int read_allowed(void)
{
    char text[16] = "";
    int fd = open(at(read_only, "file"), O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return errno;
    return read(fd, text, sizeof(text) - 1) == 5 && strcmp(text, "hello") == 0 ? 0 : WRONG;
}

static int list_allowed(void)
{
    return try_open(read_only, O_RDONLY | O_DIRECTORY);
}

static int list_root(void)
{
    return try_open("/", O_RDONLY | O_DIRECTORY);
}

static int write_read_only(void)
{
    return try_open(at(read_only, "file"), O_WRONLY);
}

static int make_in_read_only(void)
{
    return try_open(at(read_only, "new"), O_WRONLY | O_CREAT);
}

static int remove_in_read_only(void)
{
    return code(unlink(at(read_only, "file")));
}

static int take_from_read_only(void)
{
    return code(rename(at(read_only, "file"), at(writable, "file")));
}

static int write_writable(void)
{
    int fd = open(at(writable, "a"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd < 0 || pwrite(fd, "abc", 3, 0) != 3 || ftruncate(fd, 1) < 0 || fdatasync(fd) < 0)
        return errno;
    close(fd);
    if (mkdir(at(writable, "d"), 0755) < 0 || rename(at(writable, "a"), at(writable, "d/b")) < 0 ||
        unlink(at(writable, "d/b")) < 0 || rmdir(at(writable, "d")) < 0)
        return errno;
    return 0;
}

static int make_symlink(void)
{
    return code(symlink("/etc", at(writable, "etc")));
}

static int make_executable(void)
{
    return code(chmod(at(writable, "."), 04777));
}

/* --- sockets --------------------------------------------------------------------------------- */

static int make_socket(int family, int type)
{
    int fd = socket(family, type | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int socket_tcp(void)
{
    return make_socket(AF_INET, SOCK_STREAM);
}

static int socket_udp6(void)
{
    return make_socket(AF_INET6, SOCK_DGRAM);
}

static int socket_netlink(void)
{
    return make_socket(AF_NETLINK, SOCK_RAW);
}

static int socket_unix(void)
{
    int pair[2];

    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0
               ? errno
               : make_socket(AF_UNIX, SOCK_STREAM);
}

static int connect_old_tcp(void)
{
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(1), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    return code(connect(tcp_fd, (struct sockaddr *)&to, sizeof(to)));
}

/* A name that begins with '@' is abstract. */
static struct sockaddr_un unix_address(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", name);
    if (a.sun_path[0] == '@')
        a.sun_path[0] = 0;
    return a;
}

static int use_unix(const char *name, bool listens)
{
    struct sockaddr_un a = unix_address(name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (listens ? bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 8) < 0
                : connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int connect_path(void)
{
    return code(use_unix(at(links, "socket"), false));
}

static int connect_abstract(void)
{
    return code(use_unix(abstract_name, false));
}

static int bind_path(void)
{
    return code(use_unix(at(links, "mine"), true));
}

/* A descriptor that is sent to us is not asked where it comes from. */
static int pass_memfd(void)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof(control)};
    int fd = memfd_create("x", MFD_CLOEXEC), pair[2];

    if (fd < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return errno;
    control.head = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    if (sendmsg(pair[0], &m, MSG_NOSIGNAL) != 1 || recvmsg(pair[1], &m, MSG_CMSG_CLOEXEC) != 1)
        return errno;
    return m.msg_flags & MSG_CTRUNC ? WRONG : 0;
}

/* --- processes ------------------------------------------------------------------------------- */

static void *set_flag(void *data)
{
    *(bool *)data = true;
    return NULL;
}

static int make_thread(void)
{
    pthread_t t;
    bool ran = false;
    int r = pthread_create(&t, NULL, set_flag, &ran);

    if (r)
        return r;
    pthread_join(t, NULL);
    return ran ? 0 : WRONG;
}

static int make_process(void)
{
    pid_t pid = fork();

    if (pid == 0)
        _exit(0);
    return code(pid);
}

static int make_program(void)
{
    char *argv[] = {(char[]){"true"}, NULL};
    pid_t pid;

    return posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ);
}

static int make_user_namespace(void)
{
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);

    if (pid == 0)
        _exit(0);
    return code(pid);
}

static int clone3_is_missing(void)
{
    return code(syscall(SYS_clone3, NULL, 0));
}

static volatile sig_atomic_t got_signal;

static void on_signal(int number)
{
    got_signal = number;
}

static int raise_own(void)
{
    signal(SIGUSR1, on_signal);
    if (raise(SIGUSR1) != 0 || kill(getpid(), SIGUSR1) != 0)
        return errno;
    return got_signal == SIGUSR1 ? 0 : WRONG;
}

static int watch_own(void)
{
    int fds[2];

    if (!rr_wait_begin())
        return 0; /* under ThreadSanitizer */
    return socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) < 0 ? errno : -rr_wait_watch(fds[0]);
}

static int own_for(int command, int value)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) < 0)
        return errno;
    return code(fcntl(fds[0], command, value));
}

static int let_signal_parent(void)
{
    return own_for(F_SETOWN, getppid());
}

static int let_signal_group(void)
{
    return own_for(F_SETOWN, -getpid());
}

static int let_kill(void)
{
    return own_for(F_SETSIG, SIGKILL);
}

static int signal_parent(void)
{
    return code(kill(getppid(), 0));
}

static int raise_limits(void)
{
    struct rlimit l = {MAX_FILES + 1, MAX_FILES + 1};

    return code(setrlimit(RLIMIT_NOFILE, &l));
}

static int trace_me(void)
{
    return code(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
}

static int run_program(void)
{
    char *argv[] = {(char[]){"true"}, NULL};

    return code(execve("/bin/true", argv, environ));
}

#ifdef __x86_64__
/* Calls of the other tables have other numbers, which a filter of ours would misread. */
static int call_32_bit(void)
{
    int r;

    __asm__ volatile("int $0x80" : "=a"(r) : "a"(20 /* getpid */) : "memory");
    return r < 0 ? -r : 0;
}

static int call_x32(void)
{
    return code(syscall(SYS_getpid | 0x40000000));
}
#endif

/* --- privileges ------------------------------------------------------------------------------ */

static int become_root(void)
{
    return code(setuid(0));
}

static int look_at_user(void)
{
    uid_t r, e, s;
    gid_t gr, ge, gs;

    if (getresuid(&r, &e, &s) < 0 || getresgid(&gr, &ge, &gs) < 0)
        return errno;
    if (r != report.uid || e != r || s != r)
        return WRONG;
    if (was_root && r == SOMEBODY && (gr != r || ge != r || gs != r || getgroups(0, NULL) != 0))
        return WRONG;
    return 0;
}

static int look_at_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data) < 0)
        return errno;
    for (size_t i = 0; i < 2; i++)
        if (data[i].effective || data[i].permitted || data[i].inheritable)
            return WRONG;
    for (unsigned long cap = 0; was_root; cap++) {
        int r = prctl(PR_CAPBSET_READ, cap, 0, 0, 0);

        if (r < 0)
            break;
        if (r)
            return WRONG;
    }
    return report.caps_dropped ? 0 : WRONG;
}

static int look_at_flags(void)
{
    struct rlimit core, files;

    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 || prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0 ||
        prctl(PR_GET_SECCOMP, 0, 0, 0, 0) != 2 || getrlimit(RLIMIT_CORE, &core) < 0 ||
        getrlimit(RLIMIT_NOFILE, &files) < 0)
        return WRONG;
    return core.rlim_max == 0 && files.rlim_cur == MAX_FILES && files.rlim_max == MAX_FILES &&
                   report.no_new_privs && report.seccomp
               ? 0
               : WRONG;
}

static int set_dumpable(void)
{
    return code(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

static int look_at_prctl(void)
{
    return code(prctl(PR_SET_MM, 0, 0, 0, 0));
}

/* --- memory ---------------------------------------------------------------------------------- */

static int move_memory(void)
{
    size_t len = 4 * RR_MIB;
    int fd = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    uint8_t *a, *b;

    if (fd < 0 || ftruncate(fd, (off_t)len) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        return errno;
    a = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    b = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (a == MAP_FAILED || b == MAP_FAILED)
        return errno;
    a[0] = 7;
    if (mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, b) == MAP_FAILED ||
        madvise(b, len, MADV_REMOVE) < 0)
        return errno;
    return b[0] == 0 ? 0 : WRONG;
}

/* mmap() with @first, then mprotect() with @then unless that is -1. */
static int protect(int first, int then)
{
    void *p = mmap(NULL, 4096, first, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return errno;
    return then < 0 ? 0 : code(mprotect(p, 4096, then));
}

static int map_write_exec(void)
{
    return protect(PROT_READ | PROT_WRITE | PROT_EXEC, -1);
}

static int map_exec(void)
{
    return protect(PROT_READ | PROT_EXEC, -1);
}

static int protect_write_exec(void)
{
    return protect(PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static int protect_exec(void)
{
    return protect(PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC);
}

static int protect_none(void)
{
    return protect(PROT_READ | PROT_WRITE, PROT_NONE);
}

/* exit() runs what sanitizers do at the end. */
static int leave(void)
{
    fflush(NULL);
    exit(0);
}

/* --- the table ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*what)(void);
    int expected;     /* 0, an errno or KILLED */
    int landlock_abi; /* that it takes; 0: none */
} cases[] = {
    {"read /etc/passwd", read_passwd, EACCES, 1},
    {"read a sibling of an allowed folder", read_sibling, EACCES, 1},
    {"read above an allowed folder", read_upwards, EACCES, 1},
    {"read through a symbolic link", read_by_link, EACCES, 1},
    {"write to memory by /proc", read_memory_file, EACCES, 1},
    {"read in an allowed folder", read_allowed, 0, 0},
    {"list an allowed folder", list_allowed, 0, 0},
    {"list /", list_root, EACCES, 1},
    {"write in a read-only folder", write_read_only, EACCES, 1},
    {"make a file in a read-only folder", make_in_read_only, EACCES, 1},
    {"remove in a read-only folder", remove_in_read_only, EACCES, 1},
    {"move out of a read-only folder", take_from_read_only, EACCES, 2},
    {"write in a writable folder", write_writable, 0, 0},
    {"make a symbolic link", make_symlink, EACCES, 1},
    {"change a mode", make_executable, EPERM, 0},
    {"TCP socket", socket_tcp, EPERM, 0},
    {"UDP socket", socket_udp6, EPERM, 0},
    {"netlink socket", socket_netlink, EPERM, 0},
    {"unix socket", socket_unix, 0, 0},
    {"connect an older TCP socket", connect_old_tcp, EACCES, 4},
    {"connect to a path", connect_path, 0, 0},
    {"connect to an abstract name", connect_abstract, EPERM, 6},
    {"bind to a path", bind_path, EACCES, 1},
    {"pass a descriptor", pass_memfd, 0, 0},
    {"thread", make_thread, 0, 0},
    {"fork", make_process, EPERM, 0},
    {"posix_spawn", make_program, EPERM, 0},
    {"clone with a namespace", make_user_namespace, EPERM, 0},
    {"clone3", clone3_is_missing, ENOSYS, 0},
    {"signal to itself", raise_own, 0, 0},
    {"signal to the parent", signal_parent, EPERM, 0},
    {"be woken by a descriptor", watch_own, 0, 0},
    {"let a descriptor signal the parent", let_signal_parent, EPERM, 0},
    {"let a descriptor signal a group", let_signal_group, EPERM, 0},
    {"let a descriptor send SIGKILL", let_kill, EPERM, 0},
    {"raise its limits", raise_limits, EPERM, 0},
    {"execve", run_program, KILLED, 0},
#ifdef __x86_64__
    {"32-bit call", call_32_bit, KILLED, 0},
    {"x32 call", call_x32, KILLED, 0},
#endif
    {"setuid(0)", become_root, EPERM, 0},
    {"user", look_at_user, 0, 0},
    {"capabilities", look_at_capabilities, 0, 0},
    {"flags and limits", look_at_flags, 0, 0},
    {"ptrace", trace_me, LEAKS_ARE_LOOKED_FOR ? 0 : KILLED, 0},
    {"be dumpable again", set_dumpable, LEAKS_ARE_LOOKED_FOR ? 0 : EPERM, 0},
    {"prctl that is not listed", look_at_prctl, EPERM, 0},
    {"memfd, mmap, mremap, madvise", move_memory, 0, 0},
    {"mmap for writing and running", map_write_exec, EPERM, 0},
    {"mmap for running", map_exec, EPERM, 0},
    {"mprotect for writing and running", protect_write_exec, EPERM, 0},
    {"mprotect for running", protect_exec, 0, 0},
    {"mprotect for nothing", protect_none, 0, 0},
    {"exit", leave, 0, 0},
};

/* What kills at once, whatever the arguments. */
static const long killers[] = {
    /* all but ptrace, which sanitizers need */
    SYS_execve,
    SYS_execveat,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kexec_load,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_bpf,
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsmount,
    SYS_fsconfig,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_unshare,
    SYS_setns,
    SYS_pivot_root,
    SYS_chroot,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_perf_event_open,
    SYS_open_by_handle_at};

/* --- running them ---------------------------------------------------------------------------- */

static unsigned int count_open(void)
{
    unsigned int n = 0;

    for (int fd = 0; fd < MAX_FILES; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static struct rr_sandbox_options options_as(uid_t uid, const struct rr_sandbox_path paths[3])
{
    return (struct rr_sandbox_options){
        .paths = paths, .n_paths = 3, .uid = uid, .gid = uid, .max_files = MAX_FILES};
}

static void enter(uid_t uid)
{
    const struct rr_sandbox_path paths[] = {{read_only, false}, {writable, true}, {links, true}};
    struct rr_sandbox_options o = options_as(uid, paths);
    unsigned int n_open = count_open();
    struct rr_error err = {0};

    if (rr_sandbox_enter(&o, &report, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        _exit(NOT_ENTERED);
    }
    if (count_open() != n_open || (report.landlock != (report.landlock_abi > 0)))
        _exit(NOT_ENTERED);
}

/* Exit status of the process @pid, or minus the signal that ended it. */
static int status_of(pid_t pid)
{
    int status;

    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static int kernel_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);

    return abi < 0 ? 0 : (int)abi;
}

static void run_cases(uid_t uid)
{
    int abi = kernel_abi(), r;

    fflush(NULL);
    for (size_t i = 0; i < RR_ARRAY_LEN(cases); i++) {
        pid_t pid;

        if (cases[i].landlock_abi > abi) {
            print_message("%s: the kernel has no Landlock %d\n", cases[i].name,
                          cases[i].landlock_abi);
            continue;
        }
        pid = fork();
        if (pid == 0) {
            enter(uid);
            _exit(cases[i].what());
        }
        r = status_of(pid);
        if (r != cases[i].expected)
            fail_msg("%s: %d, not %d", cases[i].name, r, cases[i].expected);
    }
}

static void test_stays_the_user(void **state)
{
    (void)state;
    run_cases((uid_t)-1);
}

static void test_becomes_another(void **state)
{
    (void)state;
    if (!was_root) {
        print_message("only root can become another user\n");
        skip();
    }
    run_cases(SOMEBODY);
}

static void test_killed(void **state)
{
    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(killers); i++) {
        pid_t pid = fork();
        int r;

        if (pid == 0) {
            enter((uid_t)-1);
            syscall(killers[i], -1, -1, -1, -1, -1, -1);
            _exit(0);
        }
        r = status_of(pid);
        if (r != KILLED)
            fail_msg("call %ld: %d", killers[i], r);
    }
}

/* Threads that were there are filtered too. */
static void *try_tcp(void *data)
{
    pthread_barrier_wait(data);
    pthread_barrier_wait(data);
    return (void *)(intptr_t)socket_tcp();
}

static int with_older_thread(void)
{
    pthread_barrier_t barrier;
    pthread_t t;
    void *r;

    pthread_barrier_init(&barrier, NULL, 2);
    if (pthread_create(&t, NULL, try_tcp, &barrier) != 0)
        return WRONG;
    pthread_barrier_wait(&barrier);
    enter((uid_t)-1);
    pthread_barrier_wait(&barrier);
    pthread_join(t, &r);
    return (int)(intptr_t)r;
}

static int with_little_memory(void)
{
    struct rr_sandbox_options o = {
        .uid = (uid_t)-1, .gid = (gid_t)-1, .max_memory_bytes = 64 * RR_MIB};
    struct rr_error err;
    void *p;

    if (rr_sandbox_enter(&o, &report, &err) != 0)
        return NOT_ENTERED;
    p = mmap(NULL, 16 * RR_GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) /* address space is free */
        return WRONG;
    return code(mprotect(p, 128 * RR_MIB, PROT_READ | PROT_WRITE));
}

static int without_a_folder(void)
{
    const struct rr_sandbox_path paths[] = {{"/nowhere/at/all", false}};
    struct rr_sandbox_options o = {.paths = paths, .n_paths = 1, .uid = (uid_t)-1};
    struct rr_sandbox_report before = {.landlock_abi = 42}, now = before;
    struct rr_error err = {0};

    if (rr_sandbox_enter(&o, &now, &err) != RR_E_NOINPUT || !strstr(err.text, paths[0].path))
        return WRONG;
    return now.landlock_abi == 42 ? 0 : WRONG;
}

/* A file alone, not its folder. */
static int with_a_file(void)
{
    const struct rr_sandbox_path paths[] = {{secret, true}};
    struct rr_sandbox_options o = {
        .paths = paths, .n_paths = 1, .uid = (uid_t)-1, .gid = (gid_t)-1};
    struct rr_error err;

    if (rr_sandbox_enter(&o, &report, &err) != 0)
        return NOT_ENTERED;
    if (try_open(secret, O_RDWR) != 0)
        return WRONG;
    return try_open(base, O_RDONLY | O_DIRECTORY);
}

/* As on a kernel that answers @call with @error. */
static void deny(int call, int error)
{
    scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

    if (!ctx || seccomp_rule_add(ctx, SCMP_ACT_ERRNO((uint32_t)error), call, 0) != 0 ||
        seccomp_load(ctx) != 0)
        _exit(NOT_ENTERED);
    seccomp_release(ctx);
}

static int enter_without_landlock(int error)
{
    deny(SCMP_SYS(landlock_create_ruleset), error);
    enter((uid_t)-1);
    if (report.landlock || report.landlock_abi || !report.seccomp || !report.caps_dropped)
        return WRONG;
    return read_passwd() == 0 ? socket_tcp() : WRONG;
}

static int without_landlock(void)
{
    return enter_without_landlock(ENOSYS);
}

static int with_landlock_off(void)
{
    return enter_without_landlock(EOPNOTSUPP);
}

static int with_landlock_hidden(void)
{
    return enter_without_landlock(EPERM);
}

/* What is there and fails is no lack. */
static int with_broken_landlock(void)
{
    struct rr_sandbox_options o = {.uid = (uid_t)-1, .gid = (gid_t)-1};
    struct rr_error err;

    deny(SCMP_SYS(landlock_restrict_self), E2BIG);
    return rr_sandbox_enter(&o, &report, &err) == RR_E_SYSTEM ? 0 : WRONG;
}

static int run_apart(int (*what)(void))
{
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid == 0)
        _exit(what());
    return status_of(pid);
}

static void test_options(void **state)
{
    (void)state;
    assert_int_equal(run_apart(with_older_thread), EPERM);
    if (!SHADOWED)
        assert_int_equal(run_apart(with_little_memory), ENOMEM);
    assert_int_equal(run_apart(without_landlock), EPERM);
    assert_int_equal(run_apart(with_landlock_off), EPERM);
    assert_int_equal(run_apart(with_landlock_hidden), EPERM);
    if (kernel_abi() > 0) {
        assert_int_equal(run_apart(with_broken_landlock), 0);
        assert_int_equal(run_apart(without_a_folder), 0);
        assert_int_equal(run_apart(with_a_file), EACCES);
    }
}

/* --- a whole worker -------------------------------------------------------------------------- */

struct job {
    char path[96];
    struct rr_workflow *wf;
    struct rr_worker *w;
};

static void write_workflow(const char *path, bool wasi)
{
    const char *guests = getenv("RR_GUESTS");
    FILE *f = fopen(path, "we");

    assert_non_null(f);
    if (wasi)
        fprintf(f,
                "version: 1\n"
                "functions:\n"
                "  w: {module: %s/tests/wasi.wasm, args: [--fast], env: {READ_FILE: /ro/file, "
                "WRITE_FILE: /rw/out}, folders: [{host: %s, guest: /ro}, {host: %s, guest: /rw, "
                "writable: true}]}\n"
                "edges:\n"
                "  - {from: input, to: w, max: 1MiB}\n"
                "result: w\n",
                guests, read_only, writable);
    else
        fprintf(f,
                "version: 1\n"
                "functions:\n"
                "  echo: {module: %s/tests/echo.wasm}\n"
                "  upper: {module: %s/tests/upper.wasm}\n"
                "  stdio: {module: %s/tests/stdio_upper.wasm}\n"
                "  buffer: {module: %s/tests/buf_upper.wasm}\n"
                "edges:\n"
                "  - {from: input, to: echo, max: 1MiB}\n"
                "  - {from: echo, to: upper, max: 1MiB}\n"
                "  - {from: upper, to: stdio, max: 1MiB}\n"
                "  - {from: stdio, to: buffer, max: 1MiB}\n"
                "result: buffer\n",
                guests, guests, guests, guests);
    fclose(f);
}

static int open_job(struct job *job, const char *name)
{
    struct rr_worker_options options = {.no_cache = true};
    struct rr_error err = {0};

    snprintf(job->path, sizeof(job->path), "%s/%s", base, name);
    if (rr_workflow_load(job->path, &job->wf, &err) != 0 ||
        rr_worker_new(job->wf, &options, &job->w, &err) != 0) {
        fprintf(stderr, "%s\n", err.text);
        return WRONG;
    }
    return 0;
}

static int run_job(struct job *job, const uint8_t *data, size_t len, struct rr_result *ret)
{
    int fd = memfd_create("input", MFD_CLOEXEC);
    struct rr_error err = {0};
    int r;

    if (fd < 0 || rr_write_all(fd, data, len) < 0 || lseek(fd, 0, SEEK_SET) != 0)
        return WRONG;
    r = rr_worker_run(job->w, fd, ret, &err);
    close(fd);
    if (r)
        fprintf(stderr, "%s\n", err.text);
    return r ? WRONG : 0;
}

/* Twice: the second time regions and instances' memories come from pools. */
static int run_chain(struct job *job)
{
    uint8_t *data = malloc(PAYLOAD);
    struct rr_result result;
    int r = data ? 0 : WRONG;

    for (size_t i = 0; r == 0 && i < PAYLOAD; i++)
        data[i] = (uint8_t)('a' + i * 31 % 26);
    for (int n = 0; n < 2 && r == 0; n++) {
        r = run_job(job, data, PAYLOAD, &result);
        if (r == 0 && result.len != PAYLOAD)
            r = WRONG;
        for (size_t i = 0; r == 0 && i < PAYLOAD; i++)
            r = result.data[i] == data[i] - 'a' + 'A' ? 0 : WRONG;
        rr_worker_release(job->w);
    }
    free(data);
    return r;
}

/* What the guest says about its two folders. */
static int run_wasi(struct job *job, const char *read, const char *write)
{
    const char *lines[] = {"arg --fast\n", read, write};
    struct rr_result result;
    int r = run_job(job, (const uint8_t *)"x", 1, &result);

    for (size_t i = 0; r == 0 && i < RR_ARRAY_LEN(lines); i++)
        if (!memmem(result.data, result.len, lines[i], strlen(lines[i]))) {
            fprintf(stderr, "no '%s' in '%.*s'\n", lines[i], (int)result.len, result.data);
            r = WRONG;
        }
    rr_worker_release(job->w);
    return r;
}

static void close_job(struct job *job)
{
    rr_worker_free(job->w);
    rr_workflow_free(job->wf);
}

/*
 * Modules are loaded as whoever we are, guests run as somebody. The engine's one thread is there
 * already, and so is not bound by Landlock; that is why a worker that is confined in earnest
 * does it before it has threads, as in the next test.
 */
static int worker_made_before(void)
{
    struct job chain, wasi;
    int r = open_job(&chain, "chain.yaml") | open_job(&wasi, "wasi.yaml");

    if (r)
        return r;
    enter(was_root ? SOMEBODY : (uid_t)-1);
    r = run_chain(&chain) | run_wasi(&wasi, "read /ro/file: hello\n", "write /rw/out: ok\n");
    close_job(&chain);
    close_job(&wasi);
    return r;
}

/* All of it confined, the compiler and the engine's threads too. */
static int worker_made_after(void)
{
    const struct rr_sandbox_path paths[] = {
        {base, false}, {writable, true}, {getenv("RR_GUESTS"), false}};
    struct rr_sandbox_options o = options_as((uid_t)-1, paths);
    struct job chain, wasi;
    struct rr_error err;
    int r;

    if (rr_sandbox_enter(&o, &report, &err) != 0)
        return NOT_ENTERED;
    r = open_job(&chain, "chain.yaml") | open_job(&wasi, "wasi.yaml");
    if (r == 0)
        r = run_chain(&chain) | run_wasi(&wasi, "read /ro/file: hello\n", "write /rw/out: ok\n");
    close_job(&chain);
    close_job(&wasi);
    return r;
}

/* A folder that the workflow grants and the sandbox does not is closed. */
static int worker_with_closed_folders(void)
{
    const struct rr_sandbox_path paths[] = {
        {links, false}, {links, false}, {getenv("RR_GUESTS"), false}};
    struct rr_sandbox_options o = options_as((uid_t)-1, paths);
    struct rr_error err;
    struct job wasi;
    int r;

    if (open_job(&wasi, "wasi.yaml") != 0 || rr_sandbox_enter(&o, &report, &err) != 0)
        return NOT_ENTERED;
    r = run_wasi(&wasi, "read /ro/file: Permission denied\n", "write /rw/out: Permission denied\n");
    close_job(&wasi);
    return r;
}

static void test_worker(void **state)
{
    const char *out = at(writable, "out");

    (void)state;
    assert_int_equal(run_apart(worker_made_before), 0);
    assert_int_equal(unlink(out), 0);
    assert_int_equal(run_apart(worker_made_after), 0);
    assert_int_equal(unlink(out), 0);
    if (kernel_abi() > 0) {
        assert_int_equal(run_apart(worker_with_closed_folders), 0);
        assert_int_equal(try_open(out, O_RDONLY), ENOENT);
    }
}

/* --- the place ------------------------------------------------------------------------------- */

static void make_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);

    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, 0666), 0); /* Landlock alone is to say no */
    assert_int_equal(rr_write_all(fd, text, strlen(text)), 0);
    close(fd);
}

static void make_folder(char path[80], const char *name)
{
    snprintf(path, 80, "%s/%s", base, name);
    assert_int_equal(mkdir(path, 0777), 0);
    assert_int_equal(chmod(path, 0777), 0);
}

static int setup(void **state)
{
    int fd;

    (void)state;
    was_root = geteuid() == 0;
    strcpy(base, "/tmp/rr-test-sandbox-XXXXXX");
    assert_non_null(mkdtemp(base));
    assert_int_equal(chmod(base, 0755), 0);
    make_folder(read_only, "ro");
    make_folder(writable, "rw");
    make_folder(links, "link");
    snprintf(secret, sizeof(secret), "%s/secret", base);
    make_file(secret, "secret");
    make_file(at(read_only, "file"), "hello");
    assert_int_equal(symlink(secret, at(read_only, "link")), 0);
    write_workflow(at(base, "chain.yaml"), false);
    write_workflow(at(base, "wasi.yaml"), true);

    snprintf(abstract_name, sizeof(abstract_name), "@rr-test-sandbox-%d", getpid());
    assert_true(use_unix(abstract_name, true) >= 0);
    fd = use_unix(at(links, "socket"), true);
    assert_true(fd >= 0);
    assert_int_equal(chmod(at(links, "socket"), 0777), 0);
    tcp_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return 0;
}

static int teardown(void **state)
{
    static const char *const names[] = {"ro/file",   "ro/link",     "ro",   "rw/out",
                                        "rw",        "link/socket", "link", "chain.yaml",
                                        "wasi.yaml", "secret"};

    (void)state;
    for (size_t i = 0; i < RR_ARRAY_LEN(names); i++)
        remove(at(base, names[i]));
    return rmdir(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stays_the_user), cmocka_unit_test(test_becomes_another),
        cmocka_unit_test(test_killed),         cmocka_unit_test(test_options),
        cmocka_unit_test(test_worker),
    };

    return cmocka_run_group_tests_name("sandbox", tests, setup, teardown);
}
