/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <string.h>

#include "workflow/internal.h"

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool rr_name_valid(const char *name, size_t len)
{
    if (len == 0 || len > RR_WORKFLOW_MAX_NAME || !is_letter(name[0]))
        return false;
    for (size_t i = 1; i < len; i++) {
        if (!is_letter(name[i]) && !(name[i] >= '0' && name[i] <= '9') && name[i] != '_' &&
            name[i] != '-')
            return false;
    }
    return true;
}

static unsigned int min3(unsigned int a, unsigned int b, unsigned int c)
{
    unsigned int m = a < b ? a : b;

    return m < c ? m : c;
}

unsigned int rr_name_distance(const char *a, const char *b)
{
    /* Three rows of the usual table; whatever is longer than a name is far away anyway. */
    unsigned int rows[3][RR_WORKFLOW_MAX_NAME + 2];
    unsigned int *before = rows[0], *above = rows[1], *row = rows[2];
    size_t len_a = strlen(a), len_b = strlen(b);

    if (len_a > RR_WORKFLOW_MAX_NAME || len_b > RR_WORKFLOW_MAX_NAME)
        return RR_WORKFLOW_MAX_NAME + 1;
    for (unsigned int j = 0; j <= len_b; j++)
        above[j] = before[j] = j;
    for (size_t i = 1; i <= len_a; i++) {
        int ca = tolower((unsigned char)a[i - 1]);
        unsigned int *spare = before;

        row[0] = (unsigned int)i;
        for (size_t j = 1; j <= len_b; j++) {
            int cb = tolower((unsigned char)b[j - 1]);

            row[j] = min3(above[j] + 1, row[j - 1] + 1, above[j - 1] + (ca != cb));
            if (i > 1 && j > 1 && ca == tolower((unsigned char)b[j - 2]) &&
                cb == tolower((unsigned char)a[i - 2]))
                row[j] = min3(row[j], before[j - 2] + 1, row[j]);
        }
        before = above;
        above = row;
        row = spare;
    }
    return above[len_b];
}

void rr_nearest_init(struct rr_nearest *n, const char *wanted)
{
    n->wanted = wanted;
    n->best = NULL;
    /* A third of the letters may differ, at least one: "ot" is not a misspelt "decode". */
    n->distance = (unsigned int)(strlen(wanted) / 3) + 2;
    if (n->distance > 6)
        n->distance = 6;
}

void rr_nearest_offer(struct rr_nearest *n, const char *name)
{
    unsigned int d = rr_name_distance(n->wanted, name);

    /* "x" and "y" differ by one letter but have none in common. */
    if (d < n->distance && d < strlen(name)) {
        n->best = name;
        n->distance = d;
    }
}
