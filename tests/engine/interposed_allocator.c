// Preloaded into a process, counts its allocations of 4 KiB and more while it is asked to: malloc and its
// relatives, and mmap of anonymous memory. glibc's own calls of mmap, for large mallocs, do not pass here:
// nothing counts twice.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { kLeast = 4096, kKept = 16 };

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static atomic_int counting;
static atomic_int found;
static size_t sizes[kKept];
static void* callers[kKept];

static void note(size_t size, void* caller) {
    if (size < kLeast || !atomic_load(&counting)) return;
    int i = atomic_fetch_add(&found, 1);
    if (i < kKept) {
        sizes[i] = size;
        callers[i] = caller;
    }
}

#define NOTE(size) note(size, __builtin_return_address(0))

void* malloc(size_t size) {
    NOTE(size);
    return __libc_malloc(size);
}

void* calloc(size_t count, size_t size) {
    NOTE(count * size);
    return __libc_calloc(count, size);
}

void* realloc(void* old, size_t size) {
    NOTE(size);
    return __libc_realloc(old, size);
}

void* memalign(size_t alignment, size_t size) {
    NOTE(size);
    return __libc_memalign(alignment, size);
}

void* aligned_alloc(size_t alignment, size_t size) {
    NOTE(size);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void** out, size_t alignment, size_t size) {
    NOTE(size);
    void* p = __libc_memalign(alignment, size);
    if (p == NULL) return ENOMEM;
    *out = p;
    return 0;
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
    if (flags & MAP_ANONYMOUS) NOTE(size);
    return (void*)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}

void* mmap64(void* address, size_t size, int protection, int flags, int file, off_t offset) {
    if (flags & MAP_ANONYMOUS) NOTE(size);
    return (void*)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}

void start_counting(void) {
    atomic_store(&found, 0);
    atomic_store(&counting, 1);
}

int stop_counting(void) {
    atomic_store(&counting, 0);
    return atomic_load(&found);
}

// "SIZE from FUNCTION of LIBRARY", for the message of a test that fails.
void describe(int i, char* text, size_t capacity) {
    Dl_info where = {0};
    if (i < 0 || i >= kKept || !dladdr(callers[i], &where)) where.dli_fname = "?";
    snprintf(text, capacity, "%zu bytes from %s of %s", sizes[i % kKept],
             where.dli_sname ? where.dli_sname : "?", where.dli_fname);
}
