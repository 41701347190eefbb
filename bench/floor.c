/* SPDX-License-Identifier: Apache-2.0 */
/* The baseline of the rings: the bare copies of a burst. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

struct copy {
    void *to;
    const void *from;
    size_t length;
};

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* Make all copies in order; return the nanoseconds they took. */
uint64_t copy_all(const struct copy *copies, size_t count)
{
    uint64_t start = now();
    for (size_t i = 0; i < count; i++)
        memcpy(copies[i].to, copies[i].from, copies[i].length);
    return now() - start;
}
