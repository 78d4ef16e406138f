"""What the output may look like on the terminals, pipes and old consoles there are."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

import pytest

from trioconn._cli import main, terminal
from trioconn._cli.terminal import Look, prepare


class Terminal(io.TextIOWrapper):
    """An output with an encoding, on a terminal or not."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "WT_SESSION", "ANSICON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def be_on(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(platform=platform))


def test_old_consoles_get_plain_characters() -> None:
    assert Look(rich_characters=False)("✓ → …", "good") == "+ -> ..."
    assert Look(colour=True)("x", "good") == "\x1b[32mx\x1b[0m"


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    be_on("linux", monkeypatch)
    assert Look.of(Terminal()) == Look(colour=True)
    assert Look.of(Terminal(terminal=False)) == Look()
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "dumb")
        assert not Look.of(Terminal()).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Look.of(Terminal()).colour


@pytest.mark.parametrize("name", ["WT_SESSION", "TERM", "ANSICON"])
def test_consoles_of_windows_say_whether_they_know_colours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_on("win32", monkeypatch)
    monkeypatch.delenv("TERM")
    assert not Look.of(Terminal()).colour
    monkeypatch.setenv(name, "1")
    assert Look.of(Terminal()).colour


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_only_characters_that_the_encoding_has_are_written(encoding: str) -> None:
    stream = Terminal(encoding)
    stream.write(Look.of(stream)("✓ x → y … █"))  # else this raises
    stream.flush()
    assert Look.of(stream).rich_characters == (encoding == "utf-8")


def test_an_encoding_that_python_does_not_know_counts_as_plain() -> None:
    class Odd(io.StringIO):
        encoding = "no-such-encoding"  # type: ignore[assignment]

    assert not Look.of(Odd()).rich_characters


def test_what_a_console_lacks_is_escaped() -> None:
    with contextlib.redirect_stdout(Terminal("ascii")) as out, contextlib.redirect_stderr(io.StringIO()):
        prepare()
        print("ü✓")
        out.flush()
        assert out.buffer.getvalue() == b"\\xfc\\u2713\n"  # type: ignore[attr-defined]


def test_an_output_that_is_no_file_is_used_as_it_is() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["doctor"]) == 0
    assert "OpenSSL" in out.getvalue()
