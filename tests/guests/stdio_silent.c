/* SPDX-License-Identifier: Apache-2.0 */
/* A WASI command that reads nothing and writes nothing: an empty result. */
int main(void)
{
    return 0;
}
