/* SPDX-License-Identifier: Apache-2.0 */
#include "gateway/curl.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#include "base/util.h"

static const struct {
    const char *name;
    size_t offset;
} names[] = {
    {"curl_global_init", offsetof(struct rr_curl, global_init)},
    {"curl_multi_init", offsetof(struct rr_curl, multi_init)},
    {"curl_multi_add_handle", offsetof(struct rr_curl, multi_add)},
    {"curl_multi_remove_handle", offsetof(struct rr_curl, multi_remove)},
    {"curl_multi_perform", offsetof(struct rr_curl, multi_perform)},
    {"curl_multi_poll", offsetof(struct rr_curl, multi_poll)},
    {"curl_multi_wakeup", offsetof(struct rr_curl, multi_wakeup)},
    {"curl_multi_cleanup", offsetof(struct rr_curl, multi_cleanup)},
    {"curl_multi_info_read", offsetof(struct rr_curl, multi_read)},
    {"curl_easy_init", offsetof(struct rr_curl, init)},
    {"curl_easy_cleanup", offsetof(struct rr_curl, cleanup)},
    {"curl_easy_setopt", offsetof(struct rr_curl, setopt)},
    {"curl_easy_getinfo", offsetof(struct rr_curl, getinfo)},
    {"curl_easy_perform", offsetof(struct rr_curl, perform)},
    {"curl_easy_strerror", offsetof(struct rr_curl, text)},
    {"curl_easy_unescape", offsetof(struct rr_curl, unescape)},
    {"curl_slist_append", offsetof(struct rr_curl, append)},
    {"curl_slist_free_all", offsetof(struct rr_curl, free_list)},
    {"curl_url", offsetof(struct rr_curl, url)},
    {"curl_url_cleanup", offsetof(struct rr_curl, url_cleanup)},
    {"curl_url_set", offsetof(struct rr_curl, url_set)},
    {"curl_url_get", offsetof(struct rr_curl, url_get)},
    {"curl_free", offsetof(struct rr_curl, free)},
};

int rr_curl_load(const struct rr_curl **ret, struct rr_error *err)
{
    static struct rr_curl curl;
    static void *library;

    if (!library) {
        library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
        if (!library)
            return rr_error_set(err, RR_E_SYSTEM, "install the package libcurl4",
                                "cannot load libcurl: %s", dlerror());
        for (size_t n = 0; n < RR_ARRAY_LEN(names); n++) {
            void *at = dlsym(library, names[n].name);

            if (!at) {
                library = NULL; /* what it started may run on */
                return rr_error_set(err, RR_E_SYSTEM, "install a libcurl of 7.85 or later",
                                    "libcurl has no %s", names[n].name);
            }
            memcpy((char *)&curl + names[n].offset, &at, sizeof(at));
        }
        if (curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
            library = NULL;
            return rr_error_no_memory(err);
        }
    }
    *ret = &curl;
    return 0;
}
