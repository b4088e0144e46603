/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses that names of callbacks may have: who answers for a name is not who allowed it. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "gateway/async.h"

/* IPv4 as ::ffff:a.b.c.d, so that there is one kind. */
struct net {
    uint8_t at[16];
    unsigned int bits;
};

static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

static bool parse_net(const char *text, struct net *ret)
{
    const char *slash = strchr(text, '/');
    size_t len = slash ? (size_t)(slash - text) : strlen(text);
    unsigned long bits = 128, most = 128;
    char address[INET6_ADDRSTRLEN], *end = NULL;

    if (len >= sizeof(address))
        return false;
    memcpy(address, text, len);
    address[len] = '\0';
    if (inet_pton(AF_INET, address, ret->at + sizeof(mapped)) == 1) {
        memcpy(ret->at, mapped, sizeof(mapped));
        most = 32;
    } else if (inet_pton(AF_INET6, address, ret->at) != 1) {
        return false;
    }
    bits = most;
    if (slash && slash[1] >= '0' && slash[1] <= '9')
        bits = strtoul(slash + 1, &end, 10);
    if (bits > most || (slash && (!end || *end)))
        return false;
    ret->bits = (unsigned int)(bits + 128 - most);
    return true;
}

bool rr_gateway_net_ok(const char *net)
{
    struct net n;

    return parse_net(net, &n);
}

static bool contains(const struct net *n, const uint8_t at[16])
{
    unsigned int bytes = n->bits / 8, rest = n->bits % 8;

    return memcmp(n->at, at, bytes) == 0 &&
           (!rest || (n->at[bytes] ^ at[bytes]) >> (8 - rest) == 0);
}

static bool get_address(const struct sockaddr *a, size_t len, uint8_t ret[16])
{
    static const uint8_t nat64[12] = {0, 0x64, 0xff, 0x9b}; /* the well-known prefix of RFC 6052 */
    static const uint8_t none[12];
    struct sockaddr_in in;
    struct sockaddr_in6 in6;

    if (a->sa_family == AF_INET && len >= sizeof(in)) {
        memcpy(&in, a, sizeof(in));
        memcpy(ret, mapped, sizeof(mapped));
        memcpy(ret + sizeof(mapped), &in.sin_addr, 4);
        return true;
    }
    if (a->sa_family != AF_INET6 || len < sizeof(in6))
        return false;
    memcpy(&in6, a, sizeof(in6));
    memcpy(ret, &in6.sin6_addr, 16);
    /* What stands for an IPv4 address is judged as that; but :: and ::1 are themselves. */
    if (memcmp(ret, nat64, sizeof(nat64)) == 0 ||
        (memcmp(ret, none, sizeof(none)) == 0 && (ret[12] || ret[13])))
        memcpy(ret, mapped, sizeof(mapped));
    return true;
}

/* This machine, this link, several machines at once, and where clouds tell machines their secrets.
 */
static const char *const never[] = {
    "0.0.0.0/8",   "127.0.0.0/8",   "169.254.0.0/16", "224.0.0.0/4",     "255.255.255.255",
    "::/127",      "fe80::/10",     "ff00::/8",       "100.100.100.200", "fd00:ec2::254",
    "192.0.0.192", "168.63.129.16", "fd20:ce::254"};

bool rr_callback_address_ok(const struct sockaddr *a, size_t len, const char *const *nets,
                            size_t n_nets)
{
    uint8_t at[16];
    struct net n;

    if (!get_address(a, len, at))
        return false;
    for (size_t k = 0; k < n_nets; k++)
        if (parse_net(nets[k], &n) && contains(&n, at))
            return true;
    for (size_t k = 0; k < RR_ARRAY_LEN(never) && !n_nets; k++)
        if (parse_net(never[k], &n) && contains(&n, at))
            return false;
    return !n_nets;
}
