"""The documentation builds without a warning, and no link in it leads nowhere. Needs the group ``docs``."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

for library in ("sphinx", "furo", "sphinxcontrib_trio", "myst_parser"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Where a page leads, and where it can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in {"href", "src"} and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(tmp_path_factory.mktemp("doctrees")), str(ROOT / "docs"), str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=85)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


def test_links_lead_somewhere(built: Path) -> None:
    pages = {path.resolve(): Page(path) for path in built.rglob("*.html") if "_static" not in path.parts}
    assert len(pages) > 20
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if urlsplit(target).scheme or target.startswith("//") or link in {"#", "#furo-main-content"}:
                continue
            there = (path.parent / unquote(urlsplit(target).path)).resolve() if target else path
            known = there.is_file() or (there / "index.html").is_file()
            if not known or (anchor and there in pages and unquote(anchor) not in pages[there].anchors):
                dead.append(f"{path.relative_to(built)}: {link}")
    assert not dead, "\n".join(dead)
