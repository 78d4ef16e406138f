"""The examples of docs/asyncio.md, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_example(name: str, *args: str) -> list[str]:
    script = ROOT / "docs" / "examples" / f"{name}.py"
    command = [sys.executable, "-W", "error", str(script), *args]
    if name == "asyncio_on_trio":  # trio-asyncio subclasses at import what Python 3.12 deprecated
        command[3:3] = ["-W", "ignore::DeprecationWarning"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert not done.returncode, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def test_aiohttp(server: Any) -> None:
    lines = run_example("asyncio_aiohttp", server.url(), server.url("/download?size=1000"))
    assert lines[0].startswith("200 ") and lines[1:] == ["200 1000", "1 connections made"]


def test_stream(server: Any) -> None:
    assert run_example("asyncio_stream", server.url()) == ["HTTP/1.1 200 OK"]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="trio-asyncio is for Python before 3.14")
def test_on_trio(server: Any) -> None:
    pytest.importorskip("trio_asyncio")
    assert run_example("asyncio_on_trio", server.url()) == ["asyncio: 200", "trio: True"]
