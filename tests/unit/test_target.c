/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>

#include "base/util.h"
#include "gateway/async.h"

static bool ok(const char *address, const char *const *nets, size_t n)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, address, &in.sin_addr) == 1)
        return rr_callback_address_ok((struct sockaddr *)&in, sizeof(in), nets, n);
    assert_int_equal(inet_pton(AF_INET6, address, &in6.sin6_addr), 1);
    return rr_callback_address_ok((struct sockaddr *)&in6, sizeof(in6), nets, n);
}

static const struct {
    const char *address;
    bool expected;
} by_default[] = {
    {"93.184.216.34", true},
    {"10.0.0.1", true}, /* services of a cluster */
    {"192.168.1.1", true},
    {"2001:db8::1", true},
    {"fd00::1", true},
    {"127.0.0.1", false},
    {"127.255.255.254", false},
    {"128.0.0.1", true},
    {"0.0.0.0", false},
    {"0.1.2.3", false},
    {"169.254.169.254", false},
    {"169.253.255.255", true},
    {"169.255.0.0", true},
    {"224.0.0.1", false},
    {"255.255.255.255", false},
    {"100.100.100.200", false},
    {"168.63.129.16", false},
    {"::", false},
    {"::1", false},
    {"::2", true},
    {"fe80::1", false},
    {"febf::1", false},
    {"fec0::1", true},
    {"ff02::1", false},
    {"fd00:ec2::254", false},
    {"::ffff:127.0.0.1", false},
    {"::ffff:169.254.169.254", false},
    {"::ffff:93.184.216.34", true},
    {"::127.0.0.1", false},
    {"64:ff9b::7f00:1", false},
    {"64:ff9b::a9fe:a9fe", false},
    {"64:ff9b::5db8:d822", true},
};

static void test_by_default(void **state)
{
    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(by_default); n++)
        if (ok(by_default[n].address, NULL, 0) != by_default[n].expected)
            fail_msg("%s", by_default[n].address);
}

static void test_networks(void **state)
{
    static const char *const nets[] = {"127.0.0.1", "10.1.0.0/17", "fd00:1::/33", "::1"};
    static const struct {
        const char *address;
        bool expected;
    } cases[] = {
        {"127.0.0.1", true},      {"127.0.0.2", false},     {"10.1.0.1", true},
        {"10.1.127.255", true},   {"10.1.128.0", false},    {"::ffff:10.1.0.1", true},
        {"fd00:1:7fff::1", true}, {"fd00:1:8000::", false}, {"::1", true},
        {"93.184.216.34", false}, {"2001:db8::1", false},
    };

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(cases); n++)
        if (ok(cases[n].address, nets, RR_ARRAY_LEN(nets)) != cases[n].expected)
            fail_msg("%s", cases[n].address);
}

static void test_what_is_none(void **state)
{
    static const char *const bad[] = {"",       "/",     "1.2.3.4/",   "1.2.3.4/33", "1.2.3.4/x",
                                      "::/129", "::/-1", "1.2.3.4/8x", "a",          "1.2.3"};
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    struct sockaddr_in in = {.sin_family = AF_INET};

    (void)state;
    for (size_t n = 0; n < RR_ARRAY_LEN(bad); n++)
        assert_false(rr_gateway_net_ok(bad[n]));
    assert_true(rr_gateway_net_ok("0.0.0.0/0") && rr_gateway_net_ok("::/0"));
    assert_false(rr_callback_address_ok((struct sockaddr *)&un, sizeof(un), NULL, 0));
    assert_false(rr_callback_address_ok((struct sockaddr *)&in, 4, NULL, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_default),
        cmocka_unit_test(test_networks),
        cmocka_unit_test(test_what_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
