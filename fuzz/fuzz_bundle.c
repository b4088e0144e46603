/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a config.json: an error that says why, or a bundle that can be rewritten. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "oci/oci.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Annotations, as far as an image may have written them. */
static void chain_of(struct json_object *spec, bool rewritten)
{
    const struct rr_oci_fds fds = {.second = 5, .domain = 6};
    const struct rr_oci_giver giver = {.containerd = "default"};
    struct rr_oci_chain c = {0};
    char key[RR_OCI_DOMAIN];
    struct rr_error err;

    if (rr_oci_domain_key(spec, &giver, key, &err) == 0 && (strchr(key, '/') || key[0] == '.'))
        abort();
    if (rr_oci_chain_read(spec, &c, &err) == 0 && c.any &&
        rr_oci_chain_rewrite(spec, &c, &fds, &err) != 0 && (rewritten || !err.text[0]))
        abort(); /* a bundle with a program always can */
    rr_oci_chain_deinit(&c);
}

/* The same bytes as a workflow file. */
static void modules_of(const char *text, size_t len)
{
    char *paths[RR_OCI_MAX_MODULES];
    size_t n = rr_oci_workflow_modules(text, len, "/w/flow.yaml", paths);

    for (size_t k = 0; k < n; k++) {
        if (paths[k][0] != '/')
            abort();
        free(paths[k]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct json_object *spec = NULL, *again = NULL;
    struct rr_error err = {0};
    const char *text;
    bool rewritten;

    modules_of((const char *)data, len);
    if (rr_bundle_parse((const char *)data, len, &spec, &err) != 0) {
        if (!err.text[0] || spec)
            abort();
        return 0;
    }
    rr_bundle_annotation(spec, "run.oci.handler");
    rr_bundle_lower_version(spec, "/usr/bin/crun");
    rewritten = rr_bundle_rewrite(spec, 3, 4, &err) == 0;
    if (rewritten && rr_bundle_annotation(spec, "run.oci.handler"))
        abort(); /* the runtime below would run it itself */
    chain_of(spec, rewritten);
    text = json_object_to_json_string_ext(spec, JSON_C_TO_STRING_PLAIN);
    if (rr_bundle_parse(text, strlen(text), &again, &err) != 0)
        abort();
    json_object_put(again);
    json_object_put(spec);
    return 0;
}
