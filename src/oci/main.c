/* SPDX-License-Identifier: Apache-2.0 */
#include "oci/oci.h"

int main(int argc, char **argv)
{
    return rr_oci_cli(argc, argv);
}
