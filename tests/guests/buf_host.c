/* SPDX-License-Identifier: Apache-2.0 */
/* The buffer tier's other way out: hands its input to wasi_export.read_memory_host(). */
#include "../../bench/guests/buffer.h"

__attribute__((import_module("wasi_export"), import_name("read_memory_host"))) int32_t
read_memory_host(const void *p, uint32_t len);

EXPORT(start) uint64_t start(void *in, uint32_t len)
{
    read_memory_host(in, len);
    return 0;
}
