/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gateway: libcurl, loaded when it is first wanted: its two dozen libraries would more than double
 * the time that every command takes to start. May call base.
 */
#ifndef RR_GATEWAY_CURL_H
#define RR_GATEWAY_CURL_H

#define CURL_DISABLE_TYPECHECK /* it would call what is not linked */
#include <curl/curl.h>

#include "base/error.h"

struct rr_curl {
    CURLcode (*global_init)(long);
    CURLM *(*multi_init)(void);
    CURLMcode (*multi_add)(CURLM *, CURL *);
    CURLMcode (*multi_remove)(CURLM *, CURL *);
    CURLMcode (*multi_perform)(CURLM *, int *);
    CURLMcode (*multi_poll)(CURLM *, struct curl_waitfd *, unsigned int, int, int *);
    CURLMcode (*multi_wakeup)(CURLM *);
    CURLMcode (*multi_cleanup)(CURLM *);
    CURLMsg *(*multi_read)(CURLM *, int *);
    CURL *(*init)(void);
    void (*cleanup)(CURL *);
    CURLcode (*setopt)(CURL *, CURLoption, ...);
    CURLcode (*getinfo)(CURL *, CURLINFO, ...);
    CURLcode (*perform)(CURL *);
    const char *(*text)(CURLcode);
    char *(*unescape)(CURL *, const char *, int, int *);
    struct curl_slist *(*append)(struct curl_slist *, const char *);
    void (*free_list)(struct curl_slist *);
    CURLU *(*url)(void);
    void (*url_cleanup)(CURLU *);
    CURLUcode (*url_set)(CURLU *, CURLUPart, const char *, unsigned int);
    CURLUcode (*url_get)(const CURLU *, CURLUPart, char **, unsigned int);
    void (*free)(void *);
};

/* Once, before there are threads; it stays. 0 or RR_E_SYSTEM. */
int rr_curl_load(const struct rr_curl **ret, struct rr_error *err);

#endif
