/* SPDX-License-Identifier: Apache-2.0 */
/* Peer of guests/exit.c: what does as little, in an ordinary container. */
int main(void)
{
    return 0;
}
