/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, it counts a process's calls of malloc, calloc and realloc. */
#include <stddef.h>
#include <stdint.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static uint64_t count;

uint64_t allocations(void)
{
    return __atomic_load_n(&count, __ATOMIC_RELAXED);
}

static void counted(void)
{
    __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t size)
{
    counted();
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size)
{
    counted();
    return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size)
{
    counted();
    return __libc_realloc(old, size);
}
