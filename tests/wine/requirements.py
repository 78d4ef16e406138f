"""Prints what the tests need on Windows, in words that pip takes: python requirements.py PYPROJECT.

The lists are pyproject.toml's. Two names are added: pip judges conditions such as ``os_name == "nt"`` by the system
that it runs on, which here is the wrong one.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ONLY_ON_WINDOWS = ["cffi", "colorama"]  # of trio, and of pytest
EXTRAS = ["demo", "socks", "dns", "cli"]


def main(pyproject: str) -> None:
    data = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))
    project = data["project"]
    wanted = [*project["dependencies"], *data["dependency-groups"]["test"], *ONLY_ON_WINDOWS]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    print(*sorted({word.replace(" ", "") for word in wanted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
