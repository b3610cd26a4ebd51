"""The system calls that a program in the sandbox may make, with their numbers on x86_64 and aarch64.

The numbers are those of Linux: asm/unistd_64.h for x86_64, asm-generic/unistd.h for aarch64. All other calls fail:
sockets, new processes and threads, signals to others, ptrace, mount, new limits, ...
"""

# Name → numbers on x86_64 and on aarch64; None: that machine has no such call.
Numbers = dict[str, tuple[int, int | None]]

ALWAYS: Numbers = {
    # open files
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "pipe": (22, None),
    # what files there are, not what is in them
    "stat": (4, None),
    "lstat": (6, None),
    "access": (21, None),
    "readlink": (89, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    # memory, a process's own signals
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "membarrier": (324, 283),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "arch_prctl": (158, None),
    # time and waiting
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "pause": (34, None),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "poll": (7, None),
    "select": (23, None),
    # the process itself, and its end
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "umask": (95, 166),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Opening, listing, creating, renaming and removing files: only where Landlock says which ones.
FILES: Numbers = {
    "openat": (257, 56),
    "getdents64": (217, 61),
    "unlinkat": (263, 35),
    "mkdirat": (258, 34),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "open": (2, None),
    "unlink": (87, None),
    "rename": (82, None),
    "mkdir": (83, None),
    "rmdir": (84, None),
    "getdents": (78, None),
}
# Allowed for a few arguments only, see `sandbox_child`.
CHECKED: Numbers = {
    "ioctl": (16, 29),
    "fcntl": (72, 25),
    "prlimit64": (302, 261),
}
# How seccomp names the machine of a system call: AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of linux/audit.h.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def numbers(machine: str) -> dict[str, object]:
    """What the child needs to filter system calls on `machine`, one of `AUDIT_ARCH`; goes through JSON."""
    column = list(AUDIT_ARCH).index(machine)
    return {
        "machine": machine,
        "audit_arch": AUDIT_ARCH[machine],
        "always": [pair[column] for pair in ALWAYS.values() if pair[column] is not None],
        "files": [pair[column] for pair in FILES.values() if pair[column] is not None],
        **{name: pair[column] for name, pair in CHECKED.items()},
    }
