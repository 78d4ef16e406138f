"""What the demo shows with, and what it counts with."""

from __future__ import annotations

import os
import socket
import textwrap
from typing import Final

import trio

from .terminal import Look

_WIDTH: Final = 96


class Screen:
    """Where scenes are shown, and claims counted."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._true = self._false = 0

    def scene(self, title: str, code: str) -> None:
        """Begin a scene: what happens, and the line of code that does it."""
        print()
        print(self._look(title, "bold"))
        print("  " + self._look(code, "blue"))

    def claim(self, true: bool, text: str) -> None:
        """Say `text`, and whether it is true."""
        self._true += true
        self._false += not true
        mark = self._look("✓", "good") if true else self._look("✗", "bad")
        print(f"  {mark} {self._look(text, None if true else 'bad')}", flush=True)

    def note(self, text: str) -> None:
        """Say something that needs no proof."""
        for line in textwrap.wrap(text, _WIDTH):
            print("    " + self._look(line, "dim"), flush=True)

    def row(self, *columns: str) -> None:
        """A row of a table."""
        print("    " + self._look("".join(f"{column:<18}" for column in columns[:-1]) + columns[-1]), flush=True)

    def end(self) -> int:
        """The last line, and the exit code."""
        print()
        if self._false:
            print(self._look(f"{self._false} of {self._true + self._false} claims did not hold.", "bad"))
            return 1
        print(self._look(f"All {self._true} claims were checked, and hold.", "good"))
        print(self._look("Next: trioconn demo --trace, or get, trace, doctor with --help.", "dim"))
        return 0


class Sockets:
    """Every socket that the demo's connector makes, so that it can be shown that none is left."""

    def __init__(self) -> None:
        self._made: list[socket.socket] = []

    def make(self, info: tuple[int, int, int, str, object]) -> socket.socket:
        """A ``socket_factory``."""
        made = socket.socket(*info[:3])
        self._made.append(made)
        return made

    def counts(self) -> tuple[int, int]:
        """How many were made, and how many are open."""
        return len(self._made), sum(made.fileno() >= 0 for made in self._made)


def living_tasks() -> int:
    """How many tasks there are in this run, trio's own included."""
    return trio.lowlevel.current_statistics().tasks_living


def open_descriptors() -> int | None:
    """How many descriptors this process has open, where the system tells."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            return len(os.listdir(folder))
    return None
