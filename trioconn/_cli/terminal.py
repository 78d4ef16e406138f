"""What the output may look like: colour, and characters beyond ASCII.

Colour is for terminals only, and not where ``NO_COLOR`` is set to anything (no-color.org). Characters that the output's
encoding does not have are replaced by plain ones, so that an old console shows a poorer picture and no traceback.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import Final, Literal, TextIO, TypeAlias

Style: TypeAlias = Literal["good", "bad", "warn", "dim", "bold", "blue"]

_CODES: Final[dict[str, str]] = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1", "blue": "36"}
_PLAIN: Final = str.maketrans(
    {"✓": "+", "✗": "x", "→": "->", "…": "...", "·": "-", "—": "-", "█": "#", "▒": "=", "░": ".", "─": "-", "│": "|"}
)


@dataclass(frozen=True, slots=True)
class Look:
    """How to write on one output.

    Attributes:
      colour: whether escape sequences are understood and wanted.
      rich_characters: whether ✓ and its like can be written.
    """

    colour: bool = False
    rich_characters: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Look:
        """The look that suits `stream`."""
        colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        if colour and sys.platform == "win32":
            colour = _enable_escapes()
        try:
            "✓█░▒…".encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return cls(colour, rich_characters=False)
        return cls(colour)

    def __call__(self, text: str, style: Style | None = None) -> str:
        """`text` as this output can show it."""
        if not self.rich_characters:
            text = text.translate(_PLAIN)
        if self.colour and style is not None and text:
            return f"\x1b[{_CODES[style]}m{text}\x1b[0m"
        return text


def prepare() -> None:
    """Let no character that a console lacks end the command: it is escaped instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _enable_escapes() -> bool:
    """Whether this console of Windows understands escape sequences; terminals of today do, and say so."""
    return bool(os.environ.get("WT_SESSION") or os.environ.get("TERM") or os.environ.get("ANSICON"))
