"""The hosts file: what the administrator of this machine says about names. Pure, but for reading the file.

It matters where a name is asked for one family at a time. If the file gives a name an IPv4 address only, the system
answers a question for both families from the file alone, but passes one for IPv6 on to the DNS, whose answer the
administrator meant to override. So such names have to be known before they are split.

The file is read again when it has changed. Beyond `MOST_BYTES` it is not read, so that the event loop never stalls on
a block list of some hundred thousand lines; `HostsFile.readable` tells.
"""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address

MOST_BYTES = 65536
"""About 2000 lines: 2 ms to parse."""


def default_path() -> str:
    """Where this system keeps its hosts file."""
    if sys.platform == "win32":
        return os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "drivers", "etc", "hosts")
    return "/etc/hosts"


class HostsFile:
    """A hosts file, as of now. A missing one is empty."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = default_path() if path is None else os.fspath(path)
        self._seen: tuple[int, int, int] | None = None
        self._names: dict[str, tuple[str, ...]] = {}
        self.readable = True

    def addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of `name` in the order of the file; case and final dot do not matter."""
        self.refresh()
        return self._names.get(name.removesuffix(".").lower(), ())

    def refresh(self) -> None:
        """Read the file if it has changed; afterwards `readable` is up to date."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            self.readable = status.st_size <= MOST_BYTES
            text = ""
            if self.readable:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    text = file.read(MOST_BYTES)
        except OSError:
            seen, text = None, ""
            self.readable = True
        self._seen = seen
        self._names = parse(text)


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """The addresses of each name. Lines that do not begin with an IP address are skipped."""
    names: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            address = str(ip_address(fields[0]))
        except ValueError:
            continue
        for name in fields[1:]:
            known = names.setdefault(name.removesuffix(".").lower(), [])
            if address not in known:
                known.append(address)
    names.pop("", None)  # of a dot alone
    return {name: tuple(addresses) for name, addresses in names.items()}
