/* SPDX-License-Identifier: Apache-2.0 */
/* An item's name -> its price in cents, an int64_t; fails with 1 when it has none. */
#include <roadrunner.h>

static const struct {
    const char *item;
    int64_t cents;
} list[] = {{"apple", 35}, {"bread", 310}, {"coffee", 899}, {"milk", 125}};

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 2;
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        if (strlen(list[i].item) == in.len && memcmp(list[i].item, in.data, in.len) == 0) {
            int64_t *out = rr_alloc("out", sizeof(*out));
            if (!out)
                return 3;
            *out = list[i].cents;
            return rr_return(out, sizeof(*out));
        }
    }
    return 1;
}
