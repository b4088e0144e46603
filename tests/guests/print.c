/* SPDX-License-Identifier: Apache-2.0 */
/* Speaks on stdout, stderr and at every log level, then sends its input on. */
#include <roadrunner.h>

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    printf("stdout of %llu bytes\n", (unsigned long long)in.len);
    fflush(stdout);
    fputs("stderr line\n", stderr);
    fputs("stderr without an end", stderr);
    rr_log(RR_ERROR, "log error");
    rr_log(RR_WARN, "log warn");
    rr_log(RR_INFO, "log info");
    rr_log(RR_DEBUG, "log debug");
    return rr_return(in.data, in.len);
}
