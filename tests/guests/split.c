/* SPDX-License-Identifier: Apache-2.0 */
/* Sends the first half of its input on port "a", the second on port "b". */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    uint64_t half = in.len / 2;
    char *a = rr_alloc("a", half);
    char *b = rr_alloc("b", in.len - half);
    if (!a || !b)
        return 2;
    memcpy(a, in.data, half);
    memcpy(b, (char *)in.data + half, in.len - half);
    rr_send("b", b, in.len - half);
    return rr_send("a", a, half);
}
