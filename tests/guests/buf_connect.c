/* SPDX-License-Identifier: Apache-2.0 */
/* The same by the older name, cwasi_export.func_connect(). */
#include "../../bench/guests/buffer.h"

__attribute__((import_module("cwasi_export"), import_name("func_connect"))) int32_t
func_connect(const void *p, uint32_t len);

EXPORT(start) uint64_t start(void *in, uint32_t len)
{
    func_connect(in, len);
    return 0;
}
