/* LD_PRELOAD shim: counts fsync and fdatasync calls, and makes each take DOTDO_BENCH_SYNC_DELAY_US microseconds longer,
   to mimic an ordinary disk on a machine whose flush is almost free. `dotdo_bench_syncs()` is the count so far; it is
   kept in the file DOTDO_BENCH_SYNC_COUNT (eight bytes), if that is given, for all processes that have it together. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static atomic_long own;
static atomic_long *syncs = &own;
static long delay_us;
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);

__attribute__((constructor)) static void set_up(void) {
    const char *delay = getenv("DOTDO_BENCH_SYNC_DELAY_US"), *count = getenv("DOTDO_BENCH_SYNC_COUNT");
    delay_us = delay ? atol(delay) : 0;
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (count) {
        int file = open(count, O_RDWR | O_CLOEXEC);
        void *shared = mmap(NULL, sizeof(atomic_long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED)
            syncs = shared;
        if (file >= 0)
            close(file);
    }
}

static void count_and_wait(void) {
    struct timespec delay = {delay_us / 1000000, (delay_us % 1000000) * 1000};
    atomic_fetch_add(syncs, 1);
    if (delay_us > 0)
        nanosleep(&delay, NULL);
}

long dotdo_bench_syncs(void) { return atomic_load(syncs); }

int fsync(int fd) {
    count_and_wait();
    return real_fsync(fd);
}

int fdatasync(int fd) {
    count_and_wait();
    return real_fdatasync(fd);
}
