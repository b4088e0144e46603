/* SPDX-License-Identifier: Apache-2.0 */
/* A WASI command: stdin to stdout in large letters, a word about it on stderr. */
#include <ctype.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    unsigned long n = 0;
    for (int c; (c = getchar()) != EOF; n++)
        putchar(toupper(c));
    fprintf(stderr, "%lu bytes, %d arguments, first %s\n", n, argc - 1, argc > 1 ? argv[1] : "-");
    return 0;
}
