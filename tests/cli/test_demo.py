"""The demo: what it says is checked by itself, and here that it says it, and that a false claim would be seen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trioconn._cli import demo as demo_module
from trioconn._cli import main
from trioconn._cli.terminal import Look

TITLES = [
    "A connection is made once, and used again",
    "A limit of 2 per host, and 10 who want in",
    "A dead address loses the race",
    "A server closes a connection that lies idle",
    "A certificate for somebody else",
    "The same over a Unix socket",
    "Leaving the block leaves nothing",
    "What it counted",
]


def settled(text: str) -> str:
    """`text` without what differs from run to run: ports, times, addresses."""
    text = re.sub(r":\d{4,5}", ":PORT", text)
    text = re.sub(r"began at +\d+ ms", "began at T ms", text)
    return re.sub(r"\d+ open before, \d+ after", "N open before, N after", text)


def test_demo_shows_what_it_promises_and_always_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    screens = []
    for _ in range(2):
        assert main(["demo"]) == 0
        out, err = capfd.readouterr()
        assert not err
        screens.append(settled(out))
    assert screens[0] == screens[1]
    lines = screens[0].splitlines()
    assert [line for line in lines if line in TITLES] == TITLES
    assert "\x1b" not in screens[0], "colour is for terminals"
    assert len(lines) <= 60
    assert re.fullmatch(r"All \d+ claims were checked, and hold\.", lines[-2])


def test_a_false_claim_is_shown_and_changes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "_LIMIT", 3)  # the connector gets another limit than its servers' scene expects

    class Wrong(demo_module.TCPConnector):
        def __init__(self, **options: object) -> None:
            super().__init__(**{**options, "limit_per_host": 1})

    monkeypatch.setattr(demo_module, "TCPConnector", Wrong)
    monkeypatch.setattr(
        demo_module, "_PATIENCE", 3
    )  # with one connection per host, the race's second lease never comes
    assert main(["demo"]) == 1
    out = capsys.readouterr().out
    assert "✗ never more than 1 connections open" in out
    assert "did not hold" in out


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['trustme'] = None; from trioconn._cli import main; sys.exit(main(['demo']))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert 'pip install "trioconn[demo]"' in run.stderr
    assert "Traceback" not in run.stderr


def python(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_runs_as_a_module_and_a_reader_may_have_seen_enough() -> None:
    with python("-m", "trioconn", "demo") as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.readline()
        run.stdout.close()  # as `| head -1` does
        assert run.stderr.read() == ""
        assert run.wait(60) != 0


@pytest.mark.parametrize("command", ["demo", "get", "trace", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"trioconn {command}" in capsys.readouterr().out


def test_no_arguments_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_old_consoles_get_plain_characters() -> None:
    assert Look(rich_characters=False)("✓ → …", "good") == "+ -> ..."
    assert Look(colour=True)("x", "good") == "\x1b[32mx\x1b[0m"
