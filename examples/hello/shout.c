/* SPDX-License-Identifier: Apache-2.0 */
/* An ordinary program of the stdio tier: it knows nothing of Roadrunner. */
#include <ctype.h>
#include <stdio.h>

int main(void)
{
    for (int c; (c = getchar()) != EOF;)
        putchar(toupper(c));
    return 0;
}
