"""Stop a command at its N-th system call, whichever language or process makes it, and fail the call, or do something first.

The kernel does it (seccomp with user notification, Linux 5.5): a filter in the command hands each call of a few kinds to this
process, which counts those that touch the project and answers with an error, or lets the call go on. Threads and processes that
the command starts inherit the filter. So writes of C++ and Rust are reached as those of Python are, without a compiler or root.
Cost: about 50 us a call.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_NUMBERS = {  # of x86-64: operation -> system calls, each with the argument that names the file
    "fsync": {74: "fd", 75: "fd"},  # fsync, fdatasync
    "rename": {82: "path", 264: "at", 316: "at"},
    "link": {86: "path", 265: "at"},
    "write": {1: "fd", 18: "fd", 20: "fd", 296: "fd"},  # write, pwrite64, writev, pwritev
    "openat": {2: "path", 85: "path", 257: "at", 437: "at"},
    "unlink": {87: "path", 84: "path", 263: "at"},  # unlink, rmdir, unlinkat
    "mkdir": {83: "path", 258: "at"},
}
OPERATIONS = tuple(_NUMBERS)
_BY_NUMBER = {number: (name, how) for name, calls in _NUMBERS.items() for number, how in calls.items()}
_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_NEW_PRIVILEGES, _SECCOMP, _SET_FILTER, _NEW_LISTENER = 38, 317, 1, 8
_AUDIT_X86_64, _NOTIFY, _ALLOW = 0xC000003E, 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
_AT_CWD = -100


def why_unavailable() -> str:
    """Why calls cannot be stopped on this machine; empty where they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "needs Linux on x86-64"
    path = Path("/proc/sys/kernel/seccomp/actions_avail")
    return "" if path.exists() and "user_notif" in path.read_text() else "the kernel has no user notification"


def install_filter(channel: socket.socket) -> None:
    """In the command's process, before it does anything: hand calls to the process at the other end of ``channel``."""
    numbers = sorted(_BY_NUMBER)
    lines = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, _AUDIT_X86_64), (0x20, 0, 0, 0)]
    lines += [(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    lines += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _NOTIFY)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("@HxxxxxxP", len(lines), ctypes.addressof(code))
    if _LIBC.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    listener = _LIBC.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    os.close(listener)


@dataclass
class Watch:
    """Counts the calls of a command that touch files below ``root``; ``answer`` decides about each.

    ``answer(operation, number, pid)``: an errno to fail the call with, or 0 to let it go on. ``number`` counts from 1, per
    operation.
    """

    root: Path
    answer: Callable[[str, int, int], int]
    counts: Counter[str] = field(default_factory=Counter)

    def follow(self, channel: socket.socket, process: int) -> None:
        """Answer until the process with the handle ``process`` ends."""
        _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
        listener = array.array("i", ancillary[0][2])[0]
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            poll.register(process, select.POLLIN)
            while True:
                ready = dict(poll.poll())
                if ready.get(listener, 0) & select.POLLIN:
                    self._answer_one(listener)
                elif ready:
                    return
        finally:
            os.close(listener)  # calls of what still runs fail from now on

    def _answer_one(self, listener: int) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # the caller was killed meanwhile
                return
            raise
        identity, pid, _, number, _, _, *arguments = _NOTICE.unpack(notice)
        operation, how = _BY_NUMBER[number]
        failure = 0
        if self._is_below(pid, how, arguments):
            self.counts[operation] += 1
            failure = self.answer(operation, self.counts[operation], pid)
        reply = bytearray(_ANSWER.pack(identity, 0, -failure, 0 if failure else _CONTINUE))
        try:
            fcntl.ioctl(listener, _SEND, reply)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _is_below(self, pid: int, how: str, arguments: list[int]) -> bool:
        try:
            if how == "fd":
                path = os.readlink(f"/proc/{pid}/fd/{arguments[0]}")
            else:
                path = _text_at(pid, arguments[1 if how == "at" else 0])
                folder = ctypes.c_int32(arguments[0] & 0xFFFFFFFF).value if how == "at" else _AT_CWD
                place = "cwd" if folder == _AT_CWD else f"fd/{folder}"
                path = path if path.startswith("/") else os.readlink(f"/proc/{pid}/{place}") + "/" + path
        except OSError:
            return False
        return path == str(self.root) or path.startswith(f"{self.root}/")


def _text_at(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return (
            memory.read(4096).partition(b"\0")[0].decode(errors="surrogateescape")
        )  # less at the end of a mapping
