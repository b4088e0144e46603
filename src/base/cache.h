/* SPDX-License-Identifier: Apache-2.0 */
/* The folder of compiled images. Every entry is checked before it is trusted. */
#ifndef RR_BASE_CACHE_H
#define RR_BASE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RR_DIGEST_BYTES 32
#define RR_MAX_MODULE (256u << 20) /* bytes; a larger module is not compiled */

/* SHA-256 of up to two pieces (@b may be NULL). */
void rr_digest(const void *a, size_t a_len, const void *b, size_t b_len,
               uint8_t ret[RR_DIGEST_BYTES]);
/* What an image depends on beside its module: engine version and this CPU's features. */
void rr_cache_platform(const char *engine_version, uint8_t ret[RR_DIGEST_BYTES]);
/* What an entry is found by: the module's digest and the platform's. */
void rr_cache_key(const uint8_t module[RR_DIGEST_BYTES], const uint8_t platform[RR_DIGEST_BYTES],
                  uint8_t ret[RR_DIGEST_BYTES]);
/* The folder: $ROADRUNNER_CACHE_DIR, $XDG_CACHE_HOME/roadrunner/aot or ~/.cache/roadrunner/aot,
 * made with mode 0700. -EPERM when another user owns it or may write to it. @ret: owned, free(). */
int rr_cache_dir(char **ret);
/* The image for @key, owned: free(); -ENOENT when there is none, -EBADMSG when it is damaged,
 * foreign or of another version (the caller compiles again and stores). */
int rr_cache_load(const char *dir, const uint8_t key[RR_DIGEST_BYTES], uint8_t **ret,
                  size_t *ret_len);
/* The same from an open entry, which whoever opened it vouches for: its owner is not looked at. */
int rr_cache_load_fd(int fd, const uint8_t key[RR_DIGEST_BYTES], uint8_t **ret, size_t *ret_len);
/* The entry for the module @module_fd (of at most @max bytes, read from its start), checked as by
 * rr_cache_load(); to be read by rr_cache_load_fd(). A descriptor, or negative errno as above. */
int rr_cache_open(int module_fd, uint64_t max, const char *engine_version);
/* Where the entry for @key lies, or will. @ret: owned, free(). 0 or -ENOMEM. */
int rr_cache_path(const char *dir, const uint8_t key[RR_DIGEST_BYTES], char **ret);
/* Write atomically: readers see the old entry or the new one. 0 or negative errno. */
int rr_cache_store(const char *dir, const uint8_t key[RR_DIGEST_BYTES], const uint8_t *image,
                   size_t len);

#endif
