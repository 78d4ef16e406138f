"""A pipe server in a process of its own: python echo_process.py PATH. Serves one client after the other, until killed.

Runs on Windows alone, on nothing but Python's own calls, so that it shares no code with what it tests.
"""

from __future__ import annotations

import _winapi
import contextlib
import sys

DUPLEX, BYTES_AND_WAIT, UNLIMITED = 3, 0, 255


def serve(path: str) -> None:
    handle = _winapi.CreateNamedPipe(path, DUPLEX, BYTES_AND_WAIT, UNLIMITED, 4096, 4096, 0, 0)
    print("ready", flush=True)
    while True:
        following = _winapi.CreateNamedPipe(path, DUPLEX, BYTES_AND_WAIT, UNLIMITED, 4096, 4096, 0, 0)
        with contextlib.suppress(OSError):
            _winapi.ConnectNamedPipe(handle)
        with contextlib.suppress(OSError):  # the client has gone
            while True:
                data, _ = _winapi.ReadFile(handle, 65536)
                _winapi.WriteFile(handle, data)
        _winapi.CloseHandle(handle)
        handle = following


if __name__ == "__main__":
    serve(sys.argv[1])
