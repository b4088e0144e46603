/* SPDX-License-Identifier: Apache-2.0 */
/* containerd-shim-roadrunner-v1: what containerd asks of a shim's command line. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "oci/oci.h"
#include "shim/shim.h"

#define NAME "io.containerd.roadrunner.v1"
#define SOCKET_DIR "/run/containerd/s"
#define MAX_PARAMETERS (1u << 20)

struct options {
    const char *namespace, *id, *address, *bundle, *action, *events;
    char socket_dir[64];
    bool debug, version, info;
    bool bootstrap; /* containerd has sent its parameters, and reads ours */
};

static int die(const char *what, const char *why)
{
    fprintf(stderr, "containerd-shim-roadrunner-v1: %s: %s\n", what, why);
    return 1;
}

/* --- the command line ------------------------------------------------------------------------ */

/* As Go's flag package reads it: one dash or two, values after '=' or a blank. */
static bool read_options(struct options *o, int argc, char **argv)
{
    const char *ignored;
    const struct {
        const char *name;
        const char **value;
        bool *flag;
    } known[] = {{"namespace", &o->namespace, NULL},
                 {"id", &o->id, NULL},
                 {"address", &o->address, NULL},
                 {"bundle", &o->bundle, NULL},
                 {"publish-binary", &ignored, NULL},
                 {"socket", &ignored, NULL},
                 {"debug-socket", &ignored, NULL},
                 {"debug", NULL, &o->debug},
                 {"v", NULL, &o->version},
                 {"version", NULL, &o->version},
                 {"info", NULL, &o->info}};

    for (int n = 1; n < argc; n++) {
        const char *word = argv[n];
        size_t len, i;

        if (*word != '-') {
            o->action = word;
            continue;
        }
        word += word[1] == '-' ? 2 : 1;
        len = strcspn(word, "=");
        for (i = 0; i < RR_ARRAY_LEN(known); i++)
            if (strlen(known[i].name) == len && strncmp(known[i].name, word, len) == 0)
                break;
        if (i == RR_ARRAY_LEN(known))
            return false;
        if (known[i].flag)
            *known[i].flag = strcmp(word + len, "=false") != 0;
        else if (word[len] == '=')
            *known[i].value = word + len + 1;
        else if (n + 1 < argc)
            *known[i].value = argv[++n];
        else
            return false;
    }
    return true;
}

/* Names become parts of paths. */
static bool is_plain(const char *name)
{
    return name && *name && *name != '.' && !strchr(name, '/') && strlen(name) < 128;
}

/* --- start ----------------------------------------------------------------------------------- */

/* Parameters on stdin: those of containerd 2.3 and later name the container; before, what comes
 * there is something else. */
static void read_bootstrap(struct options *o)
{
    static uint8_t input[MAX_PARAMETERS];
    static char address[PATH_MAX];
    Rr__Pb__BootstrapParams *p;
    size_t len = 0;
    ssize_t n;

    while (len < sizeof(input) && (n = read(0, input + len, sizeof(input) - len)) > 0)
        len += (size_t)n;
    p = len ? rr__pb__bootstrap_params__unpack(NULL, len, input) : NULL;
    if (p && strcmp(p->instance_id, o->id) == 0) {
        o->bootstrap = true;
        if (*p->ttrpc_address) {
            snprintf(address, sizeof(address), "%s", p->ttrpc_address);
            o->events = address;
        }
        if (*p->socket_dir && strlen(p->socket_dir) < sizeof(o->socket_dir) - 1)
            snprintf(o->socket_dir, sizeof(o->socket_dir), "%s", p->socket_dir);
    }
    if (p)
        rr__pb__bootstrap_params__free_unpacked(p, NULL);
}

/* containerd takes the address alone for version 2 of the Task service. */
static int print_address(const struct options *o, const char *address)
{
    Rr__Pb__BootstrapResult r = RR__PB__BOOTSTRAP_RESULT__INIT;
    uint8_t out[PATH_MAX];
    size_t len;

    if (!o->bootstrap) {
        fputs(address, stdout);
    } else {
        r.version = 3;
        r.address = (char *)(uintptr_t)address;
        r.protocol = (char *)(uintptr_t)"ttrpc";
        len = rr__pb__bootstrap_result__pack(&r, out);
        fwrite(out, 1, len, stdout);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}

static int connect_to(const char *address)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    const char *path = strncmp(address, "unix://", 7) == 0 ? address + 7 : address;
    int fd;

    if (strlen(path) >= sizeof(to.sun_path))
        return -1;
    memcpy(to.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static bool read_address(const char *path, char out[256])
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = fopen(path, "re");
    size_t n = f ? fread(out, 1, 255, f) : 0;

    out[n] = 0;
    out[strcspn(out, "\n")] = 0;
    return n > 0;
}

static int write_address(const char *address)
{
    __attribute__((cleanup(rr_close_cleanup))) int fd = -1;

    unlink("address");
    fd = open("address", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : rr_write_all(fd, address, strlen(address));
}

/* The shim of the pod that this container is in, if it has one that lives. */
static bool find_group(char address[256])
{
    static const char *const names[] = {"io.containerd.runc.v2.group",
                                        "io.kubernetes.cri.sandbox-id"};
    struct json_object *spec = NULL;
    struct rr_error err;
    char path[512] = "";
    bool found = false;
    int fd;

    if (rr_oci_read_json("config.json", &spec, &err) != 0)
        return false;
    for (size_t i = 0; i < RR_ARRAY_LEN(names) && !*path; i++) {
        struct json_object *annotations = NULL, *v = NULL;

        if (json_object_is_type(spec, json_type_object))
            json_object_object_get_ex(spec, "annotations", &annotations);
        if (json_object_is_type(annotations, json_type_object))
            json_object_object_get_ex(annotations, names[i], &v);
        if (v && is_plain(json_object_get_string(v)))
            snprintf(path, sizeof(path), "../%s/address", json_object_get_string(v));
    }
    json_object_put(spec);
    if (*path && read_address(path, address)) {
        fd = connect_to(address);
        found = fd >= 0;
        rr_close_cleanup(&fd);
    }
    return found;
}

static int listen_somewhere(const struct options *o, char address[256])
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    uint8_t random[16];
    char name[33];
    mode_t mask;
    int fd, r;

    if (getrandom(random, sizeof(random), 0) != sizeof(random))
        return -errno;
    rr_hex(random, sizeof(random), name);
    mkdir("/run/containerd", 0711);
    mkdir(o->socket_dir, 0700);
    snprintf(at.sun_path, sizeof(at.sun_path), "%s/%s", o->socket_dir, name);
    snprintf(address, 256, "unix://%s", at.sun_path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    mask = umask(0177);
    r = bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, 64) < 0 ? -errno : 0;
    umask(mask);
    if (r < 0)
        close(fd);
    return r < 0 ? r : fd;
}

/* The kernel should rather end us than containerd, and a container rather than us. */
static void adjust_oom_score(pid_t parent)
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *in = NULL, *out = NULL;
    char path[64];
    long long score;

    snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", parent);
    in = fopen(path, "re");
    score = rr_read_number(in, 1000);
    if (score >= 1000)
        return;
    out = fopen("/proc/self/oom_score_adj", "we");
    if (out)
        fprintf(out, "%lld", score + 1);
}

/* containerd reads what we say from a FIFO in the bundle; it must not stop us when nobody does. */
static void redirect_streams(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC),
        log = open("log", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (null >= 0) {
        dup2(null, 0);
        dup2(null, 1);
        dup2(log >= 0 ? log : null, 2);
    }
    rr_close_cleanup(&null);
    rr_close_cleanup(&log);
}

static int serve(const struct options *o, int listen_fd)
{
    struct rr_loop *loop = NULL;
    struct rr_events *events = NULL;
    struct rr_tasks *tasks = NULL;
    struct rr_server *server = NULL;
    int r = rr_loop_new(&loop);

    if (r == 0)
        r = rr_events_new(loop, o->events, o->namespace, &events);
    if (r == 0)
        r = rr_tasks_new(loop, events, o->namespace, &tasks);
    if (r == 0)
        r = rr_server_new(loop, listen_fd, rr_tasks_call, tasks, &server);
    if (r == 0)
        r = rr_loop_run(loop);
    if (server)
        rr_server_free(server);
    if (tasks)
        rr_tasks_free(tasks);
    if (events)
        rr_events_free(events);
    if (loop)
        rr_loop_free(loop);
    return r < 0 ? 1 : 0;
}

static int start(struct options *o)
{
    pid_t parent = getppid(), pid;
    char address[256];
    int fd;

    if (find_group(address))
        return write_address(address) < 0 ? die("cannot write", "address")
                                          : print_address(o, address);
    fd = listen_somewhere(o, address);
    if (fd < 0)
        return die("cannot make a socket", strerror(-fd));
    if (write_address(address) < 0) {
        unlink(address + 7);
        return die("cannot write", "address");
    }
    pid = fork();
    if (pid < 0) {
        unlink(address + 7);
        return die("cannot start", strerror(errno));
    }
    if (pid > 0)
        return print_address(o, address);
    setsid();
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "roadrunner-shim");
    adjust_oom_score(parent);
    redirect_streams();
    rr_log_set_level(o->debug ? 3 : 1);
    pid = serve(o, fd);
    unlink(address + 7);
    return pid;
}

/* --- delete ---------------------------------------------------------------------------------- */

/* What Create left for this; @binary may be empty. */
static void read_left(const char *bundle, char root[PATH_MAX], char binary[PATH_MAX])
{
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = NULL;
    char path[PATH_MAX + 16];

    *root = *binary = 0;
    snprintf(path, sizeof(path), "%s/.shim", bundle);
    f = fopen(path, "re");
    if (f && fgets(root, PATH_MAX, f) && !fgets(binary, PATH_MAX, f))
        *binary = 0;
    root[strcspn(root, "\n")] = 0;
    binary[strcspn(binary, "\n")] = 0;
}

/* A socket whose shim has died. */
static void remove_socket(const char *bundle)
{
    char path[PATH_MAX + 16], address[256];
    int fd;

    snprintf(path, sizeof(path), "%s/address", bundle);
    if (!read_address(path, address) || strncmp(address, "unix:///", 8) != 0)
        return;
    fd = connect_to(address);
    if (fd < 0)
        unlink(address + 7);
    rr_close_cleanup(&fd);
}

/* What the runtime knows of it is a folder, which goes with it: most have been deleted by the Task
 * service. */
static bool is_left(const char *root, const char *id)
{
    char path[PATH_MAX + 160];

    snprintf(path, sizeof(path), "%s/%s", root, id);
    return *root && access(path, F_OK) == 0;
}

static int delete(const struct options *o)
{
    Rr__Pb__ExitResponse r = RR__PB__EXIT_RESPONSE__INIT;
    Rr__Pb__Timestamp at = RR__PB__TIMESTAMP__INIT;
    char bundle[PATH_MAX], root[PATH_MAX], binary[PATH_MAX], path[PATH_MAX + 16];
    struct rr_job job = {.fds = {-1, -1, -1}};
    uint8_t out[128];
    __attribute__((cleanup(rr_file_cleanup))) FILE *f = NULL;
    if (o->bundle)
        snprintf(bundle, sizeof(bundle), "%s", o->bundle);
    else if (!getcwd(bundle, sizeof(bundle)))
        return die("cannot find", "the bundle");
    read_left(bundle, root, binary);
    if (is_left(root, o->id)) {
        job.binary = binary;
        rr_job_add(&job, "--root");
        rr_job_add(&job, root);
        rr_job_add(&job, "delete");
        rr_job_add(&job, "--force");
        rr_job_add(&job, o->id);
        rr_job_wait(&job);
    }
    if (realpath(bundle, path)) /* of a container that was never made, too */
        rr_domain_leave(path);
    snprintf(path, sizeof(path), "%s/rootfs", bundle);
    rr_unmount_all(path);
    snprintf(path, sizeof(path), "%s/init.pid", bundle);
    f = fopen(path, "re");
    remove_socket(bundle);
    at.seconds = time(NULL);
    r.pid = (uint32_t)rr_read_number(f, 0);
    r.exit_status = 128 + SIGKILL;
    r.exited_at = &at;
    fwrite(out, 1, rr__pb__exit_response__pack(&r, out), stdout);
    return fflush(stdout) == 0 ? 0 : 1;
}

/* --- info, version --------------------------------------------------------------------------- */

static int info(void)
{
    Rr__Pb__RuntimeInfo r = RR__PB__RUNTIME_INFO__INIT;
    Rr__Pb__RuntimeVersion version = RR__PB__RUNTIME_VERSION__INIT;
    uint8_t out[256];

    version.version = (char *)(uintptr_t)RR_VERSION;
    r.name = (char *)(uintptr_t)NAME;
    r.version = &version;
    fwrite(out, 1, rr__pb__runtime_info__pack(&r, out), stdout);
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    const char *events = getenv("TTRPC_ADDRESS");
    struct options o = {.events = events ? events : "", .socket_dir = SOCKET_DIR};

    rr_log_set_level(-1); /* containerd takes what we print for an answer */
    if (!read_options(&o, argc, argv))
        return die("unknown option", "see containerd's documentation of shims");
    if (o.version) {
        printf("containerd-shim-roadrunner-v1:\n  Version: %s\n", RR_VERSION);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    if (o.info)
        return info();
    if (!is_plain(o.namespace) || !is_plain(o.id))
        return die("wrong or missing", "-namespace, -id");
    setenv("ROADRUNNER_CONTAINERD", o.namespace, 1); /* for roadrunner-oci: who gives annotations */
    if (o.action && strcmp(o.action, "delete") == 0)
        return delete (&o);
    if (o.action && strcmp(o.action, "start") == 0) {
        rr_cgroup_announce();
        read_bootstrap(&o);
        return start(&o);
    }
    return die("unknown action", o.action ? o.action : "none");
}
