"""What the operating system takes from a process before a student's answer runs in it.

`close` sets limits on processor time, memory, files, and has the kernel refuse, by a seccomp filter, whatever would
reach beyond the process: other processes, programs, networks, the judge. It refuses threads too, which would change
things while a check looks elsewhere; on one core torch needs none. The filter cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

FILE_MEGABYTES = 64
FILES = 256

# Numbers of system calls, from the kernel's tables for each machine.
_CALLS = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234,
        "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "memfd_create": 319, "shmget": 29, "prlimit64": 302, "unshare": 272, "setns": 308,
        "mount": 165, "socket": 41, "bpf": 321, "add_key": 248, "keyctl": 250, "userfaultfd": 323,
        "perf_event_open": 298,
    },
    "aarch64": {
        "clone": 220, "execve": 221, "execveat": 281, "kill": 129, "tkill": 130, "tgkill": 131,
        "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "memfd_create": 279, "shmget": 194, "prlimit64": 261, "unshare": 97, "setns": 268,
        "mount": 40, "socket": 198, "bpf": 280, "add_key": 217, "keyctl": 219, "userfaultfd": 282,
        "perf_event_open": 241,
    },
}
# Calls from 424 on have one number everywhere.
_CALLS_ANYWHERE = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438,
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ONLY_ITSELF = ("kill", "tgkill", "prlimit64")  # allowed where the first argument names this process, or nobody
_EPERM = 1


def close(*, seconds: float, megabytes: int) -> None:
    """Fences this process in; `megabytes` come on top of what it has already."""
    import resource  # Windows has none, and no process there comes to this

    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(seconds) + 2,
        "RLIMIT_FSIZE": FILE_MEGABYTES << 20,
        "RLIMIT_NOFILE": FILES,
        "RLIMIT_AS": _address_space() + (megabytes << 20),
    }
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS takes no limit on the address space
            continue
    if sys.platform == "linux" and platform.machine() in _CALLS:
        _filter(platform.machine())


def _address_space() -> int:
    """The bytes of addresses that this process has now: torch alone has a gigabyte, its CUDA build many."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 16 << 30


def _filter(machine: str) -> None:
    """Installs the filter."""
    calls = _CALLS[machine] | _CALLS_ANYWHERE
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    allowed, refused = 0x7FFF0000, 0x00050000
    number, architecture, argument = 0, 4, 16  # where they stand in what the kernel hands to the filter
    program = [
        (load, 0, 0, architecture),
        (equal, 1, 0, _ARCHITECTURE[machine]),
        (end, 0, 0, refused | _EPERM),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # x86's second table of calls, which nobody uses
        (end, 0, 0, refused | _EPERM),
    ]
    for name, call in calls.items():
        if name in _ONLY_ITSELF:
            program += [
                (equal, 0, 5, call),
                (load, 0, 0, argument),
                (equal, 2, 0, os.getpid()),
                (equal, 1, 0, 0 if name == "prlimit64" else os.getpid()),
                (end, 0, 0, refused | _EPERM),
                (end, 0, 0, allowed),
            ]
        else:
            program += [(equal, 0, 1, call), (end, 0, 0, refused | _EPERM)]
    program.append((end, 0, 0, allowed))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
