/* Loaded before the C library (LD_PRELOAD): the n-th operation that needs space below a folder finds none.

   A write fails as it does on a full disk: half of it is taken, and the rest refused. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char below[PATH_MAX];
static long at = -1, count = 0;
static int for_good = 0, owes = -1;

void no_space_arm(const char *folder, long operation, int stays_full) {
    strncpy(below, folder, sizeof below - 1);
    at = operation, count = 0, for_good = stays_full, owes = -1;
}

long no_space_count(void) { return count; }

static int is_below(const char *path) { return below[0] && path && strncmp(path, below, strlen(below)) == 0; }

static int is_full(void) {
    count++;
    return at >= 0 && (count == at || (for_good && count > at));
}

static int fd_is_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, #name)
#define NO_SPACE return errno = ENOSPC, -1

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (!fd_is_below(fd)) return real(fd, data, size);
    if (owes == fd) { owes = -1; NO_SPACE; }
    if (!is_full()) return real(fd, data, size);
    if (size < 2) NO_SPACE;
    owes = fd;
    return real(fd, data, size / 2);
}

#define PWRITE(name, offset_type)                                              \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {  \
        REAL(ssize_t, name, int, const void *, size_t, offset_type);           \
        if (fd_is_below(fd) && is_full()) NO_SPACE;                            \
        return real(fd, data, size, offset);                                   \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define RESIZE(name, offset_type)                                              \
    int name(int fd, offset_type size) {                                       \
        REAL(int, name, int, offset_type);                                     \
        if (fd_is_below(fd) && is_full()) NO_SPACE;                            \
        return real(fd, size);                                                 \
    }
RESIZE(ftruncate, off_t)
RESIZE(ftruncate64, off64_t)

#define ALLOCATE(name, offset_type, error)                                     \
    int name(int fd, offset_type offset, offset_type size) {                   \
        REAL(int, name, int, offset_type, offset_type);                        \
        if (fd_is_below(fd) && is_full()) return error;                        \
        return real(fd, offset, size);                                         \
    }
ALLOCATE(posix_fallocate, off_t, ENOSPC)
ALLOCATE(posix_fallocate64, off64_t, ENOSPC)

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (is_below(path) && is_full()) NO_SPACE;
    return real(path, mode);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                               \
        REAL(int, name, const char *, int, ...);                               \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                          \
        if ((flags & O_CREAT) && is_below(path) && access(path, F_OK) && is_full()) NO_SPACE; \
        return real(path, flags, mode);                                        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                           \
    int name(int at_fd, const char *path, int flags, ...) {                    \
        REAL(int, name, int, const char *, int, ...);                          \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                          \
        if ((flags & O_CREAT) && is_below(path) && access(path, F_OK) && is_full()) NO_SPACE; \
        return real(at_fd, path, flags, mode);                                 \
    }
OPENAT(openat)
OPENAT(openat64)
