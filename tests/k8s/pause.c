/* SPDX-License-Identifier: Apache-2.0 */
/* First process of a namespace, a pod's or a node's: waits, and reaps what is left to it. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal)
{
    (void)signal;
    _exit(0);
}

int main(void)
{
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        if (wait(NULL) < 0)
            usleep(100000);
}
