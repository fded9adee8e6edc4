"""What the kernel takes from a process that runs code, whatever the code is: step by step, each where the system has it.

    rlimits       memory, processor time, no core, no growing file, no process, no new descriptor; everywhere
    namespaces    where a user may make them: another network, and a root directory without files of the machine
    user          of root: nobody, after the same change of the root directory
    seccomp       no system call but those of computing in memory (seccomp.py)

Without seccomp, and with a hole in policy.py, code could still send signals to processes of the same user, and, where it
has no root of its own, rename and delete files: calls that need no descriptor.
"""

import ctypes
import os
import resource
import sys

from kvtools.keye.sandbox import seccomp

_NOBODY = 65534
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CAPABILITIES = 0x20080522  # version 3 of capset(2)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _SIGKILL = 1, 4, 9
_ROOT = "/proc/self/fdinfo"  # a directory of numbers alone, which nobody can write to


def refuse_tracing() -> None:
    """No other process of this user may read or trace this one from now on (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter(memory_bytes: int, cpu_s: float) -> None:
    """Isolate this process for good. memory_bytes: beyond what it has now; cpu_s: processor seconds."""
    used_bytes = _address_space()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        _leave_file_system(libc)
    seconds = max(1, int(cpu_s))
    for name, limit in (
        ("RLIMIT_AS", used_bytes + memory_bytes), ("RLIMIT_CPU", seconds), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NPROC", 0), ("RLIMIT_NOFILE", 0),
    ):  # fmt: skip
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (limit, limit))
    seccomp.install()


def _address_space() -> int:
    """Bytes of address space that this process has; a guess where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def _leave_file_system(libc: ctypes.CDLL) -> None:
    """An empty root, no network, no user: what of it the system allows."""
    if os.geteuid() != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    try:
        os.chroot(_ROOT)
        os.chdir("/")
    except OSError:
        pass
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError:  # a container may have no such user
            pass
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    libc.capset(header, nothing)  # those of the new namespace too
