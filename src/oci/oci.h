/* SPDX-License-Identifier: Apache-2.0 */
/*
 * oci: bundles, and the runtime below us (crun or runc), which makes the containers. In a Wasm
 * bundle our worker takes the place of the program; the rest is the runtime's, unchanged. May call
 * base.
 */
#ifndef RR_OCI_OCI_H
#define RR_OCI_OCI_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define RR_OCI_MAX_CONFIG (16u << 20)
#define RR_OCI_PRIVATE                                                        \
    ".roadrunner" /* folder in a bundle: the bundle that the runtime is given \
                   */

/* --- the command line (cli.c) ---------------------------------------------------------------- */

/* All of `roadrunner-oci`, which the shim also calls in children of its own; they end with it. */
int rr_oci_cli(int argc, char **argv);

/* --- a bundle (bundle.c) --------------------------------------------------------------------- */

struct rr_bundle {
    char *path;               /* absolute */
    char *rootfs;             /* absolute */
    struct json_object *spec; /* config.json, checked as far as we read it */
    bool wasm;                /* its program is a module: see rr_bundle_classify() */
};

/* Parse a config.json: an object with process.args, root.path, annotations and mounts of the types
 * that they must have, where they are there. @ret: owned, json_object_put(). RR_E_INVALID. */
int rr_bundle_parse(const char *text, size_t len, struct json_object **ret, struct rr_error *err);
/* Read <@path>/config.json and classify it. RR_E_NOINPUT, RR_E_INVALID. */
int rr_bundle_open(const char *path, struct rr_bundle **ret, struct rr_error *err);
void rr_bundle_free(struct rr_bundle *b);
/* NULL where there is none. Borrowed. */
const char *rr_bundle_annotation(const struct json_object *spec, const char *name);

/**
 * rr_bundle_rewrite() - have @spec's program run by our worker
 * @worker_fd: number of the worker's descriptor in the container
 * @image_fd:  the compiled image's; -1: none
 *
 * RR_E_INVALID: the container has no /proc, through which the worker is started.
 */
int rr_bundle_rewrite(struct json_object *spec, int worker_fd, int image_fd, struct rr_error *err);
/* The same for a process.json, or the process of exec. */
int rr_process_rewrite(struct json_object *process, const char *mode, int worker_fd, int image_fd,
                       struct rr_error *err);
/* Runtimes refuse a version of the specification that is newer than they are, although they would
 * ignore what they do not know. Returns true if it was changed. */
bool rr_bundle_lower_version(struct json_object *spec, const char *runtime);
/* Write it to the private folder, with paths that hold there. */
int rr_bundle_write_private(const struct rr_bundle *b, struct rr_error *err);
void rr_bundle_remove_private(const char *bundle);
/* Read a file of JSON, at most RR_OCI_MAX_CONFIG bytes. */
int rr_oci_read_json(const char *path, struct json_object **ret, struct rr_error *err);

/* --- chains (chain.c) ------------------------------------------------------------------------ */

/* What annotations say, see docs/kubernetes.md; strings: owned, NULL: nothing. */
struct rr_oci_chain {
    char *function, *next, *listen, *workflow, *second;
    unsigned int patience_s; /* 0: the usual */
    bool plain, trace, again;
    bool any; /* it is part of a chain or a workflow */
};

/* Who may give a container its trust domain. */
struct rr_oci_giver {
    const char *containerd; /* its namespace, if the caller is our shim: annotations are CRI's, or
                               those of who started it; NULL: they may be of the image */
    const char *domain;     /* the operator's word; NULL: none */
};

int rr_oci_chain_read(const struct json_object *spec, struct rr_oci_chain *ret,
                      struct rr_error *err);
void rr_oci_chain_deinit(struct rr_oci_chain *c);
/* Modules that a workflow file @path of the container names, as far as one sees at a glance: their
 * compiled images are made outside. @ret: owned paths in the container. Returns how many. */
#define RR_OCI_MAX_MODULES 8
#define RR_OCI_MAX_WORKFLOW (1u << 20)
size_t rr_oci_workflow_modules(const char *text, size_t len, const char *path,
                               char *ret[RR_OCI_MAX_MODULES]);
/* Numbers of descriptors in the container; -1: none. */
struct rr_oci_fds {
    int second, domain, modules[RR_OCI_MAX_MODULES];
    char *const *paths; /* of the modules */
    size_t n_modules;
};
/* Tell the worker: after rr_bundle_rewrite(). */
int rr_oci_chain_rewrite(struct json_object *spec, const struct rr_oci_chain *c,
                         const struct rr_oci_fds *fds, struct rr_error *err);

#define RR_OCI_DOMAIN 200
/* Does an ordinary container ask for the folder of its trust domain? RR_E_INVALID. */
int rr_oci_gateway_read(const struct json_object *spec, bool *ret, struct rr_error *err);
/* Give it @folder at /run/roadrunner, and say so to its programs. */
int rr_oci_gateway_rewrite(struct json_object *spec, const char *folder, struct rr_error *err);
/* Name of the trust domain's folder; "": it has none. RR_E_INVALID. */
int rr_oci_domain_key(const struct json_object *spec, const struct rr_oci_giver *giver,
                      char ret[RR_OCI_DOMAIN], struct rr_error *err);

/* --- folders of trust domains (domain.c) ----------------------------------------------------- */

/* The folder of the domain, made if it is the first, as a mount that no path leads to; the
 * container of @bundle is counted. */
int rr_domain_join(const char *key, const char *bundle, int *ret_fd, struct rr_error *err);
/* Its path on the host. */
void rr_domain_path(const char *key, char *ret, size_t size);
/* The container of @bundle has gone. What nobody uses any more is removed. */
void rr_domain_leave(const char *bundle);

/* --- files of a container, which may be hostile (rootfs.c) ----------------------------------- */

/* A regular file at @path below @root, whose links lead nowhere else. A descriptor or -errno. */
int rr_rootfs_open(const char *root, const char *path);
/* The file that a container would run as @name; -errno. @spec: its mounts. */
int rr_rootfs_find(const char *rootfs, const struct json_object *spec, const char *name,
                   const char *cwd);
/* Ends its name like a module's? */
bool rr_is_module_name(const char *name);
/* Or like a workflow's? */
bool rr_is_workflow_name(const char *name);
/* Does it begin like a module? */
bool rr_is_module_file(int fd);

/* --- the runtime and the worker (runtime.c) -------------------------------------------------- */

/* Path of crun or runc: $ROADRUNNER_RUNTIME, or what made the container @id below @root (NULL:
 * a new one), or what is there. Where crun could not make one (@view) with the machine's cgroups,
 * this process gets a mount namespace in which it can. */
int rr_runtime_find(const char *root, const char *id, bool view, char *ret, size_t size,
                    struct rr_error *err);
/* A descriptor of it through which nobody can write to it, and which spares it a copy of itself:
 * to be executed with RR_RUNTIME_CLONED=1 in its environment. -1: it is to be run by its path. */
#define RR_RUNTIME_CLONED "_LIBCONTAINER_CLONED_BINARY"
int rr_runtime_open(const char *path);
/* Are the node's own folders ours? Else those of a user's session are: root of a user namespace, as
 * in rootless podman, is a user, too. */
bool rr_oci_is_node(void);
/* A descriptor of roadrunner-worker, through which its file cannot be written. */
int rr_worker_open(int *ret_fd, struct rr_error *err);
/* The compiled image of a module, from the node's cache, or made for it. -1: none; the worker then
 * compiles it, and says what is wrong with it. */
int rr_worker_image(int module_fd);

#endif
