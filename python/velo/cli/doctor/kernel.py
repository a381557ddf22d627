"""Tries the system calls that velo needs: old kernels lack some, and sandboxes forbid some."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import select
import socket

from velo.cli.doctor.check import FAIL, OK, WARN, Check, read

__all__ = [
    "doorbells",
    "passed_descriptors",
    "process_handles",
    "sealed_memory",
    "signal_stacks",
    "socket_options",
]

_SANDBOX = "allow it in the sandbox (seccomp profile) that this process runs in"


def sealed_memory() -> Check:
    """Make shared memory without a name, and seal it against resizing."""
    name = "sealed memory"
    try:
        fd = os.memfd_create("velo-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        noexec = read("/proc/sys/vm/memfd_noexec")
        advice = "`sysctl vm.memfd_noexec=1`" if noexec == "2" else f"Linux 3.17 has it; {_SANDBOX}"
        return Check(name, FAIL, f"memfd_create: {error.strerror}", advice)
    try:
        os.ftruncate(fd, 4096)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        os.posix_fallocate(fd, 0, 4096)
        kept = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    except OSError as error:
        return Check(name, FAIL, f"sealing: {error.strerror}", f"Linux 3.17 has it; {_SANDBOX}")
    finally:
        os.close(fd)
    if not kept:
        return Check(
            name, FAIL, "seals are accepted and not kept", f"Linux 3.17 has them; {_SANDBOX}"
        )
    return Check(name, OK, "memfd_create, seals, fallocate")


def doorbells() -> Check:
    """Ring an eventfd, and wait for it."""
    try:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        return Check("doorbells", FAIL, f"eventfd: {error.strerror}", _SANDBOX)
    try:
        os.eventfd_write(fd, 1)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        rung = bool(poll.poll(1000))
    finally:
        os.close(fd)
    if not rung:
        return Check("doorbells", FAIL, "eventfd: it was rung, and nobody was woken", _SANDBOX)
    return Check("doorbells", OK, "eventfd")


def process_handles() -> Check:
    """Open a descriptor of a process."""
    try:
        fd = os.pidfd_open(os.getpid())
    except OSError as error:
        advice = f"Linux 5.3 has it; {_SANDBOX}"
        return Check("process handles", FAIL, f"pidfd_open: {error.strerror}", advice)
    os.close(fd)
    return Check("process handles", OK, "pidfd_open")


def passed_descriptors() -> Check:
    """Pass a descriptor through a socket."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        try:
            socket.send_fds(here, [b"x"], [here.fileno()])
            _, fds, flags, _ = socket.recv_fds(there, 1, 4)
        except OSError as error:
            return Check("passed descriptors", FAIL, f"SCM_RIGHTS: {error.strerror}", _SANDBOX)
        for fd in array.array("i", fds):
            os.close(fd)
    passed = len(fds) == 1 and not flags & socket.MSG_CTRUNC
    if not passed:
        return Check("passed descriptors", FAIL, "SCM_RIGHTS: it did not arrive", _SANDBOX)
    return Check("passed descriptors", OK, "SCM_RIGHTS")


def socket_options() -> Check:
    """Ask for the kind of a socket."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with here, there:
        try:
            here.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        except OSError as error:
            return Check("socket options", FAIL, f"getsockopt: {error.strerror}", _SANDBOX)
    return Check("socket options", OK, "getsockopt")


def signal_stacks() -> Check:
    """Ask for an alternate signal stack, which death reports need for the stack of a worker."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaltstack(None, None) == 0:
        return Check("signal stacks", OK, "sigaltstack")
    refused = f"sigaltstack: {os.strerror(ctypes.get_errno())}"
    advice = f"without it nobody learns where a worker is stuck; {_SANDBOX}"
    return Check("signal stacks", WARN, refused, advice)
