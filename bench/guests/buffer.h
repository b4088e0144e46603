/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The buffer tier's exports but `start`. The host frees what start() got and
 * what it returned, with deallocate_memory().
 */
#ifndef BUFFER_H
#define BUFFER_H

#include <stdint.h>
#include <stdlib.h>

#define EXPORT(name) __attribute__((export_name(#name)))

EXPORT(start) uint64_t start(void *in, uint32_t len);
EXPORT(allocate_memory) void *allocate_memory(uint32_t len);
EXPORT(deallocate_memory) void deallocate_memory(void *p);

void *allocate_memory(uint32_t len)
{
    return malloc(len);
}

void deallocate_memory(void *p)
{
    free(p);
}

static inline uint64_t result(const void *p, uint32_t len)
{
    return (uint64_t)(uintptr_t)p << 32 | len;
}

#endif
