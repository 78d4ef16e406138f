"""The calls of Windows that named pipes need, as functions that raise `OSError` with ``winerror`` set.

None of them waits for the peer. Two are of a kind of their own, and `open_pipe` has a flag worth knowing:

* `read_at_once` and `write_at_once` do overlapped I/O without an event loop. A handle that is registered with a
  completion port reports every operation there, and trio takes the report of an operation that it did not begin for a
  bug of its own; the lowest bit of the event's number is the documented way to have none posted. What Windows cannot do
  in the instant is withdrawn, and waited for until it is, since the buffer must live as long as the operation does.
* `open_pipe` lets the server identify the caller and no more. Otherwise a process that is quicker than the real server
  to create a pipe of the expected name could act as the user who opens it (see ImpersonateNamedPipeClient).

ctypes, and not cffi, which trio has on Windows: its declarations are private to trio.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import wintypes
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

assert sys.platform == "win32"  # what type checkers understand; nobody imports this module elsewhere

ERROR_FILE_NOT_FOUND: Final = 2
ERROR_ACCESS_DENIED: Final = 5
ERROR_BROKEN_PIPE: Final = 109
ERROR_PIPE_BUSY: Final = 231
ERROR_NO_DATA: Final = 232
ERROR_PIPE_NOT_CONNECTED: Final = 233
_ERROR_OPERATION_ABORTED: Final = 995
_ERROR_IO_PENDING: Final = 997

GENERIC_READ_WRITE: Final = 0xC0000000
OPEN_EXISTING: Final = 3
FILE_FLAG_OVERLAPPED: Final = 0x40000000
SECURITY_SQOS_PRESENT: Final = 0x00100000
SECURITY_IDENTIFICATION: Final = 0x00010000
HOW_TO_OPEN: Final = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION

_INVALID_HANDLE: Final = ctypes.c_void_p(-1).value
_INFINITE: Final = 0xFFFFFFFF
_PIPE_TYPE_MESSAGE: Final = 4


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", wintypes.DWORD),
        ("OffsetHigh", wintypes.DWORD),
        ("hEvent", wintypes.HANDLE),
    )


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)


def _declare(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    function = _kernel32[name]
    function.restype = result
    function.argtypes = arguments
    return function


_BOOL, _DWORD, _HANDLE, _BUFFER = wintypes.BOOL, wintypes.DWORD, wintypes.HANDLE, ctypes.c_void_p
_COUNT, _OVERLAPPED = ctypes.POINTER(_DWORD), ctypes.POINTER(_Overlapped)
_create_file = _declare(
    "CreateFileW", _HANDLE, wintypes.LPCWSTR, _DWORD, _DWORD, ctypes.c_void_p, _DWORD, _DWORD, _HANDLE
)
_create_event = _declare("CreateEventW", _HANDLE, ctypes.c_void_p, _BOOL, _BOOL, wintypes.LPCWSTR)
_wait = _declare("WaitForSingleObject", _DWORD, _HANDLE, _DWORD)
_close_handle = _declare("CloseHandle", _BOOL, _HANDLE)
_cancel = _declare("CancelIoEx", _BOOL, _HANDLE, _OVERLAPPED)
_get_result = _declare("GetOverlappedResult", _BOOL, _HANDLE, _OVERLAPPED, _COUNT, _BOOL)
_read_file = _declare("ReadFile", _BOOL, _HANDLE, _BUFFER, _DWORD, _COUNT, _OVERLAPPED)
_write_file = _declare("WriteFile", _BOOL, _HANDLE, _BUFFER, _DWORD, _COUNT, _OVERLAPPED)
_peek = _declare("PeekNamedPipe", _BOOL, _HANDLE, _BUFFER, _DWORD, _COUNT, _COUNT, _COUNT)
_get_info = _declare("GetNamedPipeInfo", _BOOL, _HANDLE, _COUNT, _COUNT, _COUNT, _COUNT)


def _check(done: Any) -> None:
    if not done:
        raise ctypes.WinError(ctypes.get_last_error())


def open_pipe(path: str) -> int:
    """Open a pipe for overlapped reading and writing of bytes; the handle, which is not inherited by processes.

    It fails with `ERROR_PIPE_BUSY` rather than to wait. For a pipe of this machine it takes microseconds; one of
    another machine takes as long as the network does.
    """
    handle: int | None = _create_file(path, GENERIC_READ_WRITE, 0, None, OPEN_EXISTING, HOW_TO_OPEN, None)
    _check(handle != _INVALID_HANDLE)
    assert handle is not None
    return handle


def close(handle: int) -> None:
    """Close a handle. Operations under way must have been cancelled."""
    _check(_close_handle(handle))


def carries_messages(handle: int) -> bool:
    """Whether the server made this a pipe of messages, which keeps the borders between writes."""
    flags = _DWORD()
    _check(_get_info(handle, ctypes.byref(flags), None, None, None))
    return bool(flags.value & _PIPE_TYPE_MESSAGE)


def count_readable(handle: int) -> int:
    """How many bytes there are to read. At the end of the stream it fails as a read does."""
    count = _DWORD()
    _check(_peek(handle, None, 0, None, ctypes.byref(count), None))
    return count.value


def read_at_once(handle: int, size: int) -> bytes | None:
    """Read at most `size` bytes; None if none are there."""
    buffer = ctypes.create_string_buffer(size)
    count = _do_at_once(_read_file, handle, buffer, size)
    return None if count is None else buffer.raw[:count]


def write_at_once(handle: int, data: bytes) -> int | None:
    """Write `data` and return how much of it was taken; None if that was withdrawn: some may have gone out."""
    return _do_at_once(_write_file, handle, data, len(data))


def _do_at_once(operation: Callable[..., Any], handle: int, buffer: Any, size: int) -> int | None:
    event = _create_event(None, True, False, None)
    _check(event)
    try:
        overlapped = _Overlapped(hEvent=event | 1)
        if not operation(handle, buffer, size, None, ctypes.byref(overlapped)):
            error = ctypes.get_last_error()
            if error != _ERROR_IO_PENDING:
                raise ctypes.WinError(error)
            _cancel(handle, ctypes.byref(overlapped))  # it fails if the operation was quicker, which is as good
            _wait(event, _INFINITE)  # not for the peer: for the system to let go of the buffer
        count = _DWORD()
        if _get_result(handle, ctypes.byref(overlapped), ctypes.byref(count), False):
            return count.value
        error = ctypes.get_last_error()
        if error == _ERROR_OPERATION_ABORTED:
            return None
        raise ctypes.WinError(error)
    finally:
        _close_handle(event)
