/* SPDX-License-Identifier: Apache-2.0 */
/* Lines "ITEM COUNT" -> the same with prices, and a total. Asks the function `price` for each. */
#include <roadrunner.h>

/* Price of one @item in cents; < 0 when `price` does not know it. */
static int64_t ask_price(const char *item)
{
    size_t len = strlen(item);
    char *question = rr_call_alloc("price", len);
    if (!question)
        return -1;
    memcpy(question, item, len);
    struct rr_message answer;
    if (rr_call("price", question, len, &answer) != 0)
        return -1;
    int64_t cents = -1;
    if (answer.len == sizeof(cents))
        memcpy(&cents, answer.data, sizeof(cents));
    rr_drop(answer.data); /* or it would take up memory until this function returns */
    return cents;
}

int rr_handle(void)
{
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    size_t cap = in.len * 16 + 256;
    char *out = rr_alloc("out", cap);
    char *text = strndup(in.data, in.len);
    if (!out || !text)
        return 2;
    size_t len = 0;
    int64_t total = 0;
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char item[64];
        int count;
        if (sscanf(line, "%63s %d", item, &count) != 2)
            continue;
        int64_t cents = ask_price(item);
        if (cents < 0) {
            rr_logf(RR_WARN, "no price for %s", item);
            continue;
        }
        total += cents * count;
        len += (size_t)snprintf(out + len, cap - len, "%4d %-20s %8.2f\n", count, item,
                                (double)(cents * count) / 100);
    }
    len +=
        (size_t)snprintf(out + len, cap - len, "     %-20s %8.2f\n", "total", (double)total / 100);
    return rr_return(out, len);
}
