/* SPDX-License-Identifier: Apache-2.0 */
/* cmocka needs these before its own header. */
#ifndef RR_TEST_H
#define RR_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>

static inline unsigned int count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned int n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

#endif
