"""Prints what the tests need on Windows, in words that pip takes: python requirements.py PYPROJECT.

The lists are pyproject.toml's. Two names are added: pip judges conditions such as ``os_name == "nt"`` by the system
that it runs on, which here is the wrong one.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

ONLY_ON_WINDOWS = ["cffi", "colorama"]  # of trio, and of pytest
EXTRAS = ["demo", "socks", "dns", "cli"]


def group(groups: dict[str, list[Any]], name: str) -> list[str]:
    """The requirements of a dependency group, those of the groups that it includes among them."""
    found = []
    for word in groups[name]:
        found += [word] if isinstance(word, str) else group(groups, word["include-group"])
    return found


def main(pyproject: str) -> None:
    data = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))
    project = data["project"]
    wanted = [*project["dependencies"], *group(data["dependency-groups"], "coverage"), *ONLY_ON_WINDOWS]
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    print(*sorted({word.replace(" ", "") for word in wanted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
