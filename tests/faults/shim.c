/* Preloaded into the program: writes down every call that touches a file below a folder of a test, or makes one of them fail.
 *
 * FAULTS_PROGRAM  only this executable is touched
 * FAULTS_ROOTS    folders, separated by ':'; calls on what lies elsewhere, and on what is neither a file nor a folder, pass
 * FAULTS_LOG      gets a line "SITE CALL PATH" for every call, or for the one that failed
 * FAULTS_SITE     the site whose call is to fail; without it none does
 * FAULTS_AT       which of its calls, from 1
 * FAULTS_HOW      the error's number, or "short": half of the bytes are written, further writes to that file find the disk full
 *
 * A site is the hash of the innermost return addresses inside the program, as offsets, and of the call's name. */
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FRAMES = 10, MOST_FRAMES = 64 };

static uintptr_t base, first = UINTPTR_MAX, last;
static const char *roots;
static int log_fd = -1, how;
static uint64_t site;
static long at, seen;
static char full[PATH_MAX]; /* the file on a disk that is full by now */
static __thread int inside;

static int program(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    base = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t from = base + part->p_vaddr;
        if (part->p_type != PT_LOAD) continue;
        if (from < first) first = from;
        if (from + part->p_memsz > last) last = from + part->p_memsz;
    }
    return 1; /* the first one is the program */
}

__attribute__((constructor)) static void begin(void) {
    char own[PATH_MAX];
    const char *wanted = getenv("FAULTS_PROGRAM"), *log = getenv("FAULTS_LOG"), *text;
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    if (length < 0 || !wanted || !log || !getenv("FAULTS_ROOTS")) return;
    own[length] = 0;
    if (strcmp(own, wanted)) return;
    void *frames[MOST_FRAMES];
    backtrace(frames, MOST_FRAMES); /* loads what it needs */
    dl_iterate_phdr(program, NULL);
    if ((text = getenv("FAULTS_SITE"))) site = strtoull(text, NULL, 16);
    if ((text = getenv("FAULTS_AT"))) at = atol(text);
    if ((text = getenv("FAULTS_HOW"))) how = strcmp(text, "short") ? atoi(text) : -1;
    log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    roots = getenv("FAULTS_ROOTS");
}

static int is_below_a_root(const char *path) {
    for (const char *root = roots; root && *root;) {
        size_t length = strcspn(root, ":");
        if (!strncmp(path, root, length) && (path[length] == '/' || !path[length])) return 1;
        root += length + (root[length] == ':');
    }
    return 0;
}

static uint64_t hash(uint64_t hash, const void *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
    return hash;
}

static uint64_t caller(const char *call) {
    void *frames[MOST_FRAMES];
    uint64_t sum = 0xcbf29ce484222325;
    int count = backtrace(frames, MOST_FRAMES), used = 0;
    for (int i = 0; i < count && used < FRAMES; i++) {
        uintptr_t place = (uintptr_t)frames[i];
        if (place < first || place >= last) continue;
        place -= base;
        sum = hash(sum, &place, sizeof place);
        used++;
    }
    return hash(sum, call, strlen(call));
}

/* 0, or the error of this call (-1: a short write). */
static int verdict(const char *call, const char *path, int can_be_short) {
    if (log_fd < 0 || inside || !is_below_a_root(path)) return 0;
    inside = 1;
    int result = 0, error = errno;
    uint64_t own = caller(call);
    if (can_be_short && *full && !strcmp(path, full)) {
        result = ENOSPC;
    } else if (!site || (own == site && __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) == at)) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%016llx %s %s\n", (unsigned long long)own, call, path);
        if (syscall(SYS_write, log_fd, line, (size_t)length) < 0) abort();
        if (site) result = how;
        if (result == -1) strcpy(full, path);
    }
    inside = 0;
    errno = error;
    return result;
}

/* The path of a file or folder that is open; "" for anything else. */
static const char *open_path(int fd, char *path) {
    struct stat info;
    char link[64];
    *path = 0;
    if (log_fd < 0 || inside || fstat(fd, &info) || !(S_ISREG(info.st_mode) || S_ISDIR(info.st_mode))) return path;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

/* The whole path of `name` below the folder `fd`. */
static const char *whole_path(int fd, const char *name, char *path) {
    size_t length = 0;
    *path = 0;
    if (log_fd < 0 || inside) return path;
    if (*name != '/') {
        if (fd == AT_FDCWD) {
            if (!getcwd(path, PATH_MAX - 1)) *path = 0;
        } else {
            open_path(fd, path);
        }
        length = strlen(path);
        path[length++] = '/';
    }
    snprintf(path + length, PATH_MAX - length, "%s", name);
    return path;
}

#define FAIL_WHERE(call, path)                       \
    do {                                             \
        int error = verdict(call, path, 0);          \
        if (error) { errno = error; return -1; }     \
    } while (0)

static int open_at(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    if (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) FAIL_WHERE("open", whole_path(folder, name, path));
    return syscall(SYS_openat, folder, name, flags, mode);
}

#define MODE(flags)                                              \
    mode_t mode = 0;                                             \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {      \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                            \
    }

int open(const char *name, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, name, flags, mode); }
int openat(int folder, const char *name, int flags, ...) { MODE(flags) return open_at(folder, name, flags, mode); }
int openat64(int folder, const char *name, int flags, ...) { MODE(flags) return open_at(folder, name, flags, mode); }
int creat(const char *name, mode_t mode) { return open_at(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int folder, const char *from, int other, const char *to) {
    char path[PATH_MAX];
    FAIL_WHERE("rename", whole_path(other, to, path));
    return syscall(SYS_renameat2, folder, from, other, to, 0);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int folder, const char *from, int other, const char *to, int flags) {
    char path[PATH_MAX];
    FAIL_WHERE("link", whole_path(other, to, path));
    return syscall(SYS_linkat, folder, from, other, to, flags);
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    FAIL_WHERE(flags & AT_REMOVEDIR ? "rmdir" : "unlink", whole_path(folder, name, path));
    return syscall(SYS_unlinkat, folder, name, flags);
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    FAIL_WHERE("mkdir", whole_path(folder, name, path));
    return syscall(SYS_mkdirat, folder, name, mode);
}

int fsync(int fd) {
    char path[PATH_MAX];
    FAIL_WHERE("fsync", open_path(fd, path));
    return syscall(SYS_fsync, fd);
}
int fdatasync(int fd) {
    char path[PATH_MAX];
    FAIL_WHERE("fsync", open_path(fd, path));
    return syscall(SYS_fdatasync, fd);
}
int ftruncate(int fd, off_t length) {
    char path[PATH_MAX];
    FAIL_WHERE("truncate", open_path(fd, path));
    return syscall(SYS_ftruncate, fd, length);
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* What was open is closed all the same, as Linux does. */
int close(int fd) {
    char path[PATH_MAX];
    int error = verdict("close", open_path(fd, path), 0), result = syscall(SYS_close, fd);
    if (!error) return result;
    errno = error;
    return -1;
}

/* How many of `length` bytes may be written; -1 when none. */
static ssize_t allowed(int fd, size_t length) {
    char path[PATH_MAX];
    int error = verdict("write", open_path(fd, path), 1);
    if (!error) return length;
    if (error == -1 && length > 1) return length / 2;
    errno = error == -1 ? ENOSPC : error;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    ssize_t count = allowed(fd, length);
    return count < 0 ? -1 : syscall(SYS_write, fd, bytes, (size_t)count);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t place) {
    ssize_t count = allowed(fd, length);
    return count < 0 ? -1 : syscall(SYS_pwrite64, fd, bytes, (size_t)count, place);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t place) { return pwrite(fd, bytes, length, place); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    ssize_t first_part = count > 0 ? (ssize_t)parts[0].iov_len : 0, some = allowed(fd, first_part);
    if (some < 0) return -1;
    return some < first_part ? syscall(SYS_write, fd, parts[0].iov_base, (size_t)some) : syscall(SYS_writev, fd, parts, count);
}

ssize_t read(int fd, void *bytes, size_t length) {
    char path[PATH_MAX];
    FAIL_WHERE("read", open_path(fd, path));
    return syscall(SYS_read, fd, bytes, length);
}
ssize_t pread(int fd, void *bytes, size_t length, off_t place) {
    char path[PATH_MAX];
    FAIL_WHERE("read", open_path(fd, path));
    return syscall(SYS_pread64, fd, bytes, length, place);
}
ssize_t pread64(int fd, void *bytes, size_t length, off64_t place) { return pread(fd, bytes, length, place); }
