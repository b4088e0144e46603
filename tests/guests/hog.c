/* SPDX-License-Identifier: Apache-2.0 */
/* Takes memory until there is none. */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    for (int i = 0; i < 3000; i++) {
        volatile char *p = malloc(1 << 20);

        if (!p)
            break;
        for (int k = 0; k < 1 << 20; k += 4096)
            p[k] = (char)i;
    }
    puts("there was enough");
    return 0;
}
