/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fails in the first FAILS deliveries, by HOW (trap, status, loop, sent: traps after it has sent),
 * and then sends its input on. Before it fails it writes over all of it, which no later delivery
 * may see. MS: it takes so long first.
 */
#include <roadrunner.h>
#include <time.h>

static const char *setting(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value ? value : otherwise;
}

int rr_handle(void)
{
    char id[32] = "-", attempt[8] = "1";
    const char *how = setting("HOW", "trap");
    long ms = atol(setting("MS", "0"));
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    struct rr_message in;
    if (rr_input(0, &in) != 0)
        return 1;
    rr_meta_get(in.data, "rr-delivery-id", id, sizeof(id));
    rr_meta_get(in.data, "rr-attempt", attempt, sizeof(attempt));
    rr_logf(RR_INFO, "delivery %s attempt %s", id, attempt);
    if (ms)
        nanosleep(&t, NULL);
    if (atol(attempt) > atol(setting("FAILS", "0")))
        return rr_return(in.data, in.len);
    memset(in.data, 0xee, in.len);
    if (strcmp(how, "sent") == 0)
        rr_return(in.data, in.len);
    for (volatile int n = 0; strcmp(how, "loop") == 0; n++)
        ;
    if (strcmp(how, "status") == 0)
        return 7;
    __builtin_trap();
}
