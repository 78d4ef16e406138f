"""What going through us costs aiohttp: the table of docs/asyncio.md, and the ratios that it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_small_gets_at_concurrency_20() -> None:
    pytest.importorskip("aiohttp")
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import speed
with speed.serving() as port:
    found = speed.compare(20, 41, 0.2, speed.available(), port)
for mode, figures in found.items():
    print(mode, *figures)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500, check=True)
    print(done.stdout)
    ratio = {words[0]: float(words[3]) for words in map(str.split, done.stdout.splitlines())}
    assert ratio["guest"] >= 0.9
    assert ratio.get("open_loop", 1) >= 0.45
