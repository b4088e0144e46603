/* SPDX-License-Identifier: Apache-2.0 */
/* Takes memory until there is none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    for (int i = 0; i < 3000; i++) {
        char *p = malloc(1 << 20);

        if (!p)
            break;
        memset(p, i | 1, 1 << 20);
    }
    puts("there was enough");
    return 0;
}
