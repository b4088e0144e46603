/* SPDX-License-Identifier: Apache-2.0 */
/* A plain WASI command: stdin to stdout. */
#include <stdio.h>
#include <unistd.h>

static char buf[64 * 1024];

int main(void)
{
    ssize_t n;
    while ((n = read(0, buf, sizeof(buf))) > 0) {
        for (ssize_t done = 0; done < n;) {
            ssize_t w = write(1, buf + done, (size_t)(n - done));
            if (w < 0) {
                perror("cat: stdout");
                return 1;
            }
            done += w;
        }
    }
    if (n < 0) {
        perror("cat: stdin");
        return 1;
    }
    return 0;
}
