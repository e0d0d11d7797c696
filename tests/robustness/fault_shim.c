/* Faults where they happen on a real machine: at the system call.
 *
 * Every call that changes files is trapped (seccomp and SIGSYS), whichever library makes it: Python, torch, HDF5, C's own
 * buffered files. Calls on paths below FAULT_FOLDER are counted over all threads and child processes, and the FAULT_AT-th
 * is refused, cut short, or the last thing that happens.
 *
 *     FAULT_FOLDER  absolute path without links
 *     FAULT_STATE   file that holds a `struct state`, shared by all processes
 *     FAULT_LOG     file that takes a line "number name bytes offset path target" for every call; optional
 *     FAULT_AT      1 for the first call, 0 for none
 *     FAULT_KIND    kill    the whole process group dies before the call
 *                   torn    the group dies in the middle of the call: half of the bytes are written
 *                   die     this process alone dies before the call
 *                   full    the disk is full: half of the bytes fit, and nothing that grows a file from then on
 *                   NUMBER  this errno, once
 *                   none
 *
 * Build with -shared -fPIC. It arms itself when it is loaded: by LD_PRELOAD, or into a process that runs already and has
 * one thread. Child processes inherit the filter and need the library too, so LD_PRELOAD must stay in the environment.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "written for x86_64 and aarch64"
#endif

#define PASS 0x6661756c74736869ULL /* sixth argument of our own calls; none of those trapped has one */
#define NONE -1
#define PATH_LENGTH 4096

/* Which arguments of a call say what it changes. */
struct call {
    long number;
    const char *name;
    int descriptor; /* of the file */
    int path;
    int base; /* descriptor of the folder that `path` is relative to */
    int target, target_base;
    int size;  /* bytes to write */
    int offset; /* where to write them */
    int flags; /* of an open call: it counts where it may create the file */
    int grows; /* refused by a full disk */
};

#define BY_DESCRIPTOR(call, bytes, where, more) {SYS_##call, #call, 0, NONE, NONE, NONE, NONE, bytes, where, NONE, more}
#define BY_PATH(call, index, folder, more) {SYS_##call, #call, NONE, index, folder, NONE, NONE, NONE, NONE, NONE, more}
#define RENAMING(call, from, from_folder, to, to_folder) \
    {SYS_##call, #call, NONE, from, from_folder, to, to_folder, NONE, NONE, NONE, 0}
#define OPENING(call, index, folder, options) \
    {SYS_##call, #call, NONE, index, folder, NONE, NONE, NONE, NONE, options, 1}

static const struct call CALLS[] = {
    BY_DESCRIPTOR(write, 2, NONE, 1),
    BY_DESCRIPTOR(pwrite64, 2, 3, 1),
    BY_DESCRIPTOR(writev, NONE, NONE, 1),
    BY_DESCRIPTOR(pwritev, NONE, NONE, 1),
    BY_DESCRIPTOR(sendfile, 3, NONE, 1),
    BY_DESCRIPTOR(ftruncate, NONE, NONE, 1),
    BY_DESCRIPTOR(fallocate, NONE, NONE, 1),
    BY_DESCRIPTOR(fsync, NONE, NONE, 0),
    BY_DESCRIPTOR(fdatasync, NONE, NONE, 0),
    BY_DESCRIPTOR(fchmod, NONE, NONE, 0),
    BY_PATH(mkdirat, 1, 0, 1),
    BY_PATH(unlinkat, 1, 0, 0),
    BY_PATH(fchmodat, 1, 0, 0),
    BY_PATH(truncate, 0, NONE, 1),
    RENAMING(renameat2, 1, 0, 3, 2),
    OPENING(openat, 1, 0, 2),
#ifdef SYS_renameat
    RENAMING(renameat, 1, 0, 3, 2),
#endif
#ifdef SYS_rename /* the older calls, which newer architectures do not have */
    BY_PATH(mkdir, 0, NONE, 1),
    BY_PATH(unlink, 0, NONE, 0),
    BY_PATH(rmdir, 0, NONE, 0),
    BY_PATH(chmod, 0, NONE, 0),
    RENAMING(rename, 0, NONE, 1, NONE),
    OPENING(open, 0, NONE, 1),
#endif
};
#define COUNT (sizeof CALLS / sizeof *CALLS)

struct state {
    atomic_int calls; /* so far, below the folder */
    atomic_int fired; /* whether the fault has happened */
    atomic_int full;  /* whether the disk is full */
};

static struct state *state;
static const char *folder;
static int at, log_descriptor = NONE;
static int once; /* errno; 0 for the other kinds */
static char kind; /* first letter */

/* The call itself, past our own filter. */
static long pass(long number, const long *a) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = (long)PASS;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a[0], x1 __asm__("x1") = a[1], x2 __asm__("x2") = a[2];
    register long x3 __asm__("x3") = a[3], x4 __asm__("x4") = a[4], x5 __asm__("x5") = (long)PASS;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#endif
}

static void read_link(char *link, char *path) {
    ssize_t length = readlink(link, path, PATH_LENGTH - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void path_of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    read_link(link, path);
}

static void path_of_name(const char *name, int base, char *path) {
    size_t length = 0;
    if (name[0] != '/') {
        if (base == AT_FDCWD)
            read_link("/proc/self/cwd", path);
        else
            path_of_descriptor(base, path);
        length = strlen(path);
        path[length++] = '/';
    }
    snprintf(path + length, PATH_LENGTH - length, "%s", name);
}

static void path_of_call(const struct call *call, const long *a, char *path) {
    if (call->descriptor != NONE)
        path_of_descriptor((int)a[call->descriptor], path);
    else
        path_of_name((const char *)a[call->path], call->base == NONE ? AT_FDCWD : (int)a[call->base], path);
}

static int is_inside(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static void note(int number, const struct call *call, const long *a, const char *path) {
    char line[2 * PATH_LENGTH + 64], target[PATH_LENGTH];
    target[0] = 0;
    if (call->target != NONE)
        path_of_name((const char *)a[call->target], call->target_base == NONE ? AT_FDCWD : (int)a[call->target_base], target);
    int length = snprintf(line, sizeof line, "%d\t%s\t%ld\t%ld\t%s\t%s\n", number, call->name,
                          call->size == NONE ? 0 : a[call->size], call->offset == NONE ? 0 : a[call->offset], path, target);
    long arguments[6] = {log_descriptor, (long)line, length};
    pass(SYS_write, arguments);
}

/* Half of what a call would write; a file made only of what fitted. */
static long half(const struct call *call, const long *a) {
    long fewer[6];
    memcpy(fewer, a, sizeof fewer);
    if (call->number == SYS_writev || call->number == SYS_pwritev) {
        const struct iovec *first = (const struct iovec *)a[1];
        fewer[1] = (long)first->iov_base;
        fewer[2] = (long)first->iov_len / 2;
        return pass(call->number == SYS_writev ? SYS_write : SYS_pwrite64, fewer);
    }
    if (call->size == NONE)
        return 0;
    fewer[call->size] /= 2;
    return fewer[call->size] ? pass(call->number, fewer) : 0;
}

static void end(pid_t whom) {
    kill(whom, SIGKILL);
    for (;;)
        pause();
}

static long fault(const struct call *call, const long *a) {
    atomic_store(&state->fired, 1);
    if (once)
        return -once;
    if (kind == 'd')
        end(getpid());
    if (kind == 'k')
        end(0);
    if (kind == 't') {
        half(call, a);
        end(0);
    }
    atomic_store(&state->full, 1);
    if (!call->grows)
        return pass(call->number, a);
    long written = half(call, a);
    return written > 0 ? written : -ENOSPC;
}

static long decide(const struct call *call, const long *a) {
    char path[PATH_LENGTH];
    path_of_call(call, a, path);
    if (!is_inside(path))
        return pass(call->number, a);
    int number = atomic_fetch_add(&state->calls, 1) + 1;
    if (log_descriptor != NONE)
        note(number, call, a, path);
    if (number == at)
        return fault(call, a);
    if (atomic_load(&state->full) && call->grows)
        return -ENOSPC;
    return pass(call->number, a);
}

static void on_trap(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number;
    int before = errno;
#if defined(__x86_64__)
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    long a[6] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
#else
    unsigned long long *r = ((ucontext_t *)context)->uc_mcontext.regs;
    long a[6] = {r[0], r[1], r[2], r[3], r[4], r[5]};
#endif
    for (size_t i = 0; i < COUNT; i++)
        if (CALLS[i].number == info->si_syscall) {
            long result = decide(&CALLS[i], a);
#if defined(__x86_64__)
            r[REG_RAX] = result;
#else
            r[0] = (unsigned long long)result;
#endif
        }
    errno = before;
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOW(argument) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[argument]))
#define HIGH(argument) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[argument]) + 4)
#define IF(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)

/* Traps the calls of the table, unless we made them ourselves or they open a file that must exist. */
static void trap_calls(void) {
    struct sock_filter program[8 + 6 * COUNT] = {
        LOAD(arch),    IF(ARCHITECTURE, 1, 0),       RETURN(SECCOMP_RET_ALLOW),
        LOW(5),        IF((uint32_t)PASS, 0, 3),
        HIGH(5),       IF((uint32_t)(PASS >> 32), 0, 1),
        RETURN(SECCOMP_RET_ALLOW),
    };
    unsigned short length = 8;
    for (size_t i = 0; i < COUNT; i++) {
        struct sock_filter any[] = {LOAD(nr), IF((uint32_t)CALLS[i].number, 0, 1), RETURN(SECCOMP_RET_TRAP)};
        struct sock_filter creating[] = {
            LOAD(nr), IF((uint32_t)CALLS[i].number, 0, 4), LOW(CALLS[i].flags),
            BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT, 1, 0), RETURN(SECCOMP_RET_ALLOW), RETURN(SECCOMP_RET_TRAP),
        };
        size_t size = CALLS[i].flags == NONE ? sizeof any : sizeof creating;
        memcpy(program + length, CALLS[i].flags == NONE ? any : creating, size);
        length += size / sizeof *program;
    }
    struct sock_filter last = RETURN(SECCOMP_RET_ALLOW);
    struct sock_filter whole[sizeof program / sizeof *program + 1];
    memcpy(whole, program, length * sizeof *program);
    whole[length++] = last;
    struct sock_fprog filter = {length, whole};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) {
        perror("fault_shim: seccomp");
        _exit(99);
    }
}

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "fault_shim: %s\n", what);
        _exit(99);
    }
}

__attribute__((constructor)) static void arm(void) {
    const char *state_path = getenv("FAULT_STATE"), *log_path = getenv("FAULT_LOG"), *chosen = getenv("FAULT_KIND");
    const char *number = getenv("FAULT_AT");
    folder = getenv("FAULT_FOLDER");
    if (!folder) /* nothing was asked for */
        return;
    require(state_path && chosen && number, "FAULT_STATE, FAULT_KIND and FAULT_AT must be set");
    folder = strdup(folder); /* programs may rewrite their environment */
    kind = chosen[0];
    at = kind == 'n' ? 0 : atoi(number); /* none */
    once = atoi(chosen);
    int descriptor = open(state_path, O_RDWR | O_CLOEXEC);
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    require(descriptor >= 0 && state != MAP_FAILED, "FAULT_STATE must be a file");
    close(descriptor);
    if (log_path) {
        log_descriptor = open(log_path, O_WRONLY | O_APPEND | O_CLOEXEC);
        require(log_descriptor >= 0, "FAULT_LOG must be a file");
    }
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
    trap_calls();
}
