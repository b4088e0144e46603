/* SPDX-License-Identifier: Apache-2.0 */
/* Says that it runs, and sleeps until it is ended. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    puts("ready");
    fflush(stdout);
    for (;;)
        sleep(1000);
}
