"""Locks a process irrevocably: it can only compute, with its own memory and the descriptors that it keeps.

A seccomp filter allows the few system calls that a running interpreter needs (`_ALLOWED`) and answers every other one with
EPERM: no file can be opened, no socket, process or thread created, no signal sent, no limit raised. It needs no privileges
and applies to root as well. Memory and processor time are limited by the kernel (setrlimit), with hard limits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable

CPU, MEMORY = "processor time", "memory"

# Numbers of system calls: reading and writing open descriptors, memory, waiting, clocks, exit.
_ALLOWED = {
    "x86_64": {
        "read": 0,
        "write": 1,
        "close": 3,
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "brk": 12,
        "mremap": 25,
        "madvise": 28,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "sigaltstack": 131,
        "restart_syscall": 219,
        "sched_yield": 24,
        "nanosleep": 35,
        "clock_nanosleep": 230,
        "futex": 202,
        "rseq": 334,
        "getrandom": 318,
        "gettimeofday": 96,
        "time": 201,
        "clock_gettime": 228,
        "clock_getres": 229,
        "getrusage": 98,
        "times": 100,
        "getpid": 39,
        "gettid": 186,
        "exit": 60,
        "exit_group": 231,
    },
    "aarch64": {
        "read": 63,
        "write": 64,
        "close": 57,
        "mmap": 222,
        "mprotect": 226,
        "munmap": 215,
        "brk": 214,
        "mremap": 216,
        "madvise": 233,
        "rt_sigprocmask": 135,
        "rt_sigreturn": 139,
        "sigaltstack": 132,
        "restart_syscall": 128,
        "sched_yield": 124,
        "nanosleep": 101,
        "clock_nanosleep": 115,
        "futex": 98,
        "rseq": 293,
        "getrandom": 278,
        "gettimeofday": 169,
        "clock_gettime": 113,
        "clock_getres": 114,
        "getrusage": 165,
        "times": 153,
        "getpid": 172,
        "gettid": 178,
        "exit": 93,
        "exit_group": 94,
    },
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # of a second table of calls under the number of x86-64

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


class NoLock(OSError):
    """This machine cannot lock a process; the message names what is missing."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def lock(*, cpu_s: int, memory_bytes: int, keep: tuple[int, ...]) -> None:
    """From here on this process can only compute, and it dies with its parent. This cannot be undone.

    Args:
        cpu_s: processor time, after which the kernel ends it.
        memory_bytes: in addition to what it has now.
        keep: descriptors to keep; the standard ones are pointed to /dev/null, all others are closed.

    Raises:
        NoLock: this machine does not support it.
    """
    libc = _libc()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    # Close the ranges between the descriptors to keep, in ascending order.
    for low, high in zip(
        [2, *sorted(keep)], [*sorted(keep), resource.getrlimit(resource.RLIMIT_NOFILE)[0]], strict=True
    ):
        os.closerange(low + 1, high)
    parent = os.getppid()
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != parent:
        raise NoLock("prctl(PR_SET_PDEATHSIG) failed")
    limits = {
        resource.RLIMIT_AS: _address_space() + memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for what, amount in limits.items():
        hard = resource.getrlimit(what)[1]
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(what, (amount, amount))
    _install_filter(libc)


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux" or platform.machine() not in _ALLOWED:
        raise NoLock(f"seccomp filters of {' and '.join(_ALLOWED)} under Linux are known, not of {platform.platform()}")
    return ctypes.CDLL(None, use_errno=True)


def _install_filter(libc: ctypes.CDLL) -> None:
    machine = platform.machine()
    numbers = sorted(_ALLOWED[machine].values())
    count = len(numbers)
    code = [
        (_LOAD, 0, 0, 4),  # the architecture whose numbers these are
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number
        (_AT_LEAST, count, 0, _X32),
        *((_EQUAL, count - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    instructions = (_Instruction * len(code))(*(_Instruction(*line) for line in code))
    program = _Program(len(code), instructions)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise NoLock(f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(ctypes.get_errno())}")
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        raise NoLock(f"prctl(PR_SET_SECCOMP): {os.strerror(ctypes.get_errno())}")


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def not_refused() -> list[str]:
    """Forbidden operations that a locked process can still do: each is tried, and none may succeed."""
    import socket

    def write() -> None:
        open(name := f"/tmp/cft-{os.getpid()}", "w").close()
        os.remove(name)

    def end_a_child() -> None:
        if os.fork() == 0:
            os._exit(0)

    tries: dict[str, Callable[[], object]] = {
        "make a socket": socket.socket,
        "write a file": write,
        "read a file": lambda: open("/proc/self/status"),  # noqa: SIM115
        "list a folder": lambda: os.listdir("/"),
        "begin a process": end_a_child,
        "run a program": lambda: os.execv("/nowhere", ["nowhere"]),
        "send a signal": lambda: os.kill(1, 0),
        "ask for limits": lambda: resource.getrlimit(resource.RLIMIT_CPU),  # the call that also changes them
    }
    worked = []
    for name, attempt in tries.items():
        try:
            attempt()
        except PermissionError:
            continue
        except OSError as error:
            worked.append(f"{name} ({error.strerror}, not refused)")
        else:
            worked.append(name)
    return worked
