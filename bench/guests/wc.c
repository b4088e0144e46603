/* SPDX-License-Identifier: Apache-2.0 */
/* A plain WASI command: the number of bytes on stdin, and their sum. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

static uint8_t buf[64 * 1024];

int main(void)
{
    uint64_t n_bytes = 0, sum = 0;
    ssize_t n;
    while ((n = read(0, buf, sizeof(buf))) > 0) {
        n_bytes += (uint64_t)n;
        for (ssize_t i = 0; i < n; i++)
            sum += buf[i];
    }
    if (n < 0) {
        perror("wc: stdin");
        return 1;
    }
    printf("%" PRIu64 " %" PRIu64 "\n", n_bytes, sum);
    return 0;
}
