/* Injects one fault at the n-th system call on a folder. Preloaded (LD_PRELOAD) by benchmarks/faults.py.

   fault_arm() says where, what and when; until then every call passes. Calls are counted in a long that the
   caller shares with its parent process, so that the count survives a kill. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FAIL, FAIL_ON, SIGNAL };
#define FDS 65536

static char folder[4096];
static size_t folder_size;
static volatile int action, number;
static volatile long at = -1;
static long own_count, *count = &own_count;
static unsigned char inside[FDS];

void fault_arm(const char *where, int what, long when, int errno_or_signal, long *shared) {
    strncpy(folder, where, sizeof folder - 1);
    folder_size = strlen(folder);
    action = what;
    number = errno_or_signal;
    if (shared) count = shared;
    at = when;
}

static int below(const char *path) {
    return folder_size && path && strncmp(path, folder, folder_size) == 0;
}

static int below_at(int fd, const char *path) {
    if (path && path[0] == '/') return below(path);
    return fd >= 0 && fd < FDS && inside[fd];
}

static int known(int fd) { return fd >= 0 && fd < FDS && inside[fd]; }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count one call. Returns an errno to fail with, 0 to go on, -1 to do half of it and die. */
static int fault(int takes_space) {
    if (at < 0) return 0;
    long n = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    int fails = takes_space || number == EIO; /* removing a file needs no space */
    if (action == FAIL_ON && n >= at) return fails ? number : 0;
    if (n != at || (action == FAIL && !fails)) return 0;
    switch (action) {
    case KILL: die();
    case TEAR: return -1;
    case FAIL: return number;
    case SIGNAL: kill(getpid(), number);
    }
    return 0;
}

#define REAL(type, name, ...)                                                                                 \
    static type (*real)(__VA_ARGS__);                                                                         \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* A call that is done whole before the process dies, where a torn one is asked for. */
#define WRAP(test, space, call)                                                                               \
    do {                                                                                                      \
        if (!(test)) return call;                                                                             \
        int e = fault(space);                                                                                 \
        if (e > 0) { errno = e; return -1; }                                                                  \
        if (e == 0) return call;                                                                              \
        call;                                                                                                 \
        die();                                                                                                \
        return -1;                                                                                            \
    } while (0)

static int opened(int fd, int own) {
    if (fd >= 0 && fd < FDS) inside[fd] = own;
    return fd;
}

#define MODE                                                                                                  \
    mode_t mode = 0;                                                                                          \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                      \
        va_list list;                                                                                         \
        va_start(list, flags);                                                                                \
        mode = va_arg(list, mode_t);                                                                          \
        va_end(list);                                                                                         \
    }
#define OPEN(own, call)                                                                                       \
    do {                                                                                                      \
        int own_ = own;                                                                                       \
        if (own_ && (flags & (O_CREAT | O_TRUNC))) {                                                          \
            int e = fault(1);                                                                                 \
            if (e > 0) { errno = e; return -1; }                                                              \
            if (e < 0) { call; die(); }                                                                       \
        }                                                                                                     \
        return opened(call, own_);                                                                            \
    } while (0)

int open(const char *path, int flags, ...) {
    MODE REAL(int, "open", const char *, int, ...);
    OPEN(below(path), real(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    MODE REAL(int, "open64", const char *, int, ...);
    OPEN(below(path), real(path, flags, mode));
}
int openat(int fd, const char *path, int flags, ...) {
    MODE REAL(int, "openat", int, const char *, int, ...);
    OPEN(below_at(fd, path), real(fd, path, flags, mode));
}
int openat64(int fd, const char *path, int flags, ...) {
    MODE REAL(int, "openat64", int, const char *, int, ...);
    OPEN(below_at(fd, path), real(fd, path, flags, mode));
}
int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < FDS) inside[fd] = 0;
    return real(fd);
}

#define WRITE(half)                                                                                           \
    do {                                                                                                      \
        if (!known(fd)) return real(fd, data, size);                                                          \
        int e = fault(1);                                                                                     \
        if (e > 0) { errno = e; return -1; }                                                                  \
        if (e < 0) { real(fd, data, half); die(); }                                                           \
        return real(fd, data, size);                                                                          \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITE(size / 2);
}
ssize_t writev(int fd, const struct iovec *data, int size) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    WRITE((size + 1) / 2);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WRAP(known(fd), 1, real(fd, data, size, place));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
    WRAP(known(fd), 1, real(fd, data, size, place));
}
ssize_t sendfile(int fd, int from, off_t *place, size_t size) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    WRAP(known(fd), 1, real(fd, from, place, size));
}
ssize_t sendfile64(int fd, int from, off_t *place, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off_t *, size_t);
    WRAP(known(fd), 1, real(fd, from, place, size));
}
ssize_t copy_file_range(int from, off_t *a, int fd, off_t *b, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    WRAP(known(fd), 1, real(from, a, fd, b, size, flags));
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    WRAP(known(fd), 1, real(fd));
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    WRAP(known(fd), 1, real(fd));
}
int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    WRAP(known(fd), 0, real(fd, size));
}
int ftruncate64(int fd, off_t size) {
    REAL(int, "ftruncate64", int, off_t);
    WRAP(known(fd), 0, real(fd, size));
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    WRAP(below(to), 0, real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    WRAP(below_at(b, to), 0, real(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    WRAP(below_at(b, to), 0, real(a, from, b, to, flags));
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    WRAP(below(to), 1, real(from, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    WRAP(below_at(b, to), 1, real(a, from, b, to, flags));
}
int symlink(const char *from, const char *to) {
    REAL(int, "symlink", const char *, const char *);
    WRAP(below(to), 1, real(from, to));
}
int symlinkat(const char *from, int fd, const char *to) {
    REAL(int, "symlinkat", const char *, int, const char *);
    WRAP(below_at(fd, to), 1, real(from, fd, to));
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    WRAP(below(path), 0, real(path));
}
int unlinkat(int fd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    WRAP(below_at(fd, path), 0, real(fd, path, flags));
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    WRAP(below(path), 0, real(path));
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    WRAP(below(path), 1, real(path, mode));
}
int mkdirat(int fd, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    WRAP(below_at(fd, path), 1, real(fd, path, mode));
}
