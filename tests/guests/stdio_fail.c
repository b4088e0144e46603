/* SPDX-License-Identifier: Apache-2.0 */
/* A WASI command that writes something and exits with status 3. */
#include <stdio.h>

int main(void)
{
    puts("half a result");
    fputs("the disk is made of cheese\n", stderr);
    return 3;
}
