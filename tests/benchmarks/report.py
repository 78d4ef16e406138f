"""The measured comparisons as a page and as pictures. The pictures follow the reader's light or dark scheme."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from measuring import OURS, Comparison, spread

_INTRO = """# Benchmarks

How fast leases are, beside the peers. Everything runs on one machine, over loopback or without sockets, in turns: each
round has a turn of every contender, so that a noisy moment hits all. Remake it with `nox -s bench`, or with
`python tests/benchmarks/run.py`; nginx is needed for the parts with TLS.

What never waits is measured in CPU time of the thread, the rest by the clock. A figure is the median of the rounds,
with the quartiles in brackets; where *best* is said, the best round. The ratio is the median of the rounds' own ratios.
Absolute figures say more about the machine than about anybody's code: look at the ratios. The race of addresses has a
page of its own, made by `nox -s lab`: `docs/happy-eyeballs.md`.
"""

_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .small { fill: #57606a; font-size: 12px } .ours { fill: #1a7f64 } .theirs { fill: #9aa4b0 }
  .whisker { stroke: #24292f; stroke-width: 1.5 } .target { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9da7b3 } .ours { fill: #3fb58f } .theirs { fill: #5b6673 }
    .whisker { stroke: #e6edf3 } .target { stroke: #ff7b72 }
  }
"""
_LABEL, _BARS, _VALUE, _ROW = 310, 380, 150, 22


def write(rows: list[Comparison], page: Path) -> None:
    """Write `page`, and its pictures into the folder of the same name beside it."""
    pictures = page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    parts = [_INTRO, _machine()]
    for number, (item, group) in enumerate(groupby(rows, key=lambda row: row.item), 1):
        several = list(group)
        picture = pictures / f"{number}-{_slug(item)}.svg"
        picture.write_text(_picture(several), encoding="utf-8")
        parts += [f"## {item}\n", f"![{item}]({pictures.name}/{picture.name})\n", _table(several)]
    page.write_text("\n".join(parts), encoding="utf-8")


def lines(rows: Iterable[Comparison]) -> Iterable[str]:
    """For the terminal: one line for each comparison."""
    for row in rows:
        met = {True: "met", False: "NOT MET", None: ""}[row.met()]
        figures = ", ".join(f"{name} {_number(row.figure(name))}" for name in row.samples)
        yield f"{row.name}: {figures} {row.unit}; ratio {_ratio(row)}, target {_target(row)} {met}"


def _machine() -> str:
    packages = " · ".join(f"{name} {version(name)}" for name in ("trio", "h11", "httpcore2", "httpx2", "aiohttp"))
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors · {platform.python_implementation()} "
        f"{platform.python_version()} · {packages}\n"
    )


def _table(rows: list[Comparison]) -> str:
    table = ["| | contender | figure | ratio | target | |", "|---|---|--:|--:|--:|---|"]
    for row in rows:
        for name, samples in row.samples.items():
            figure = f"{_number(row.figure(name))} {row.unit}".strip()
            if row.best:
                figure += " (best)"
            elif len(samples) > 1:
                low, high = spread(samples)
                figure += f" ({_number(low)} to {_number(high)})"
            if name == OURS:
                met = {True: "met", False: "**not met**", None: ""}[row.met()]
                table.append(f"| {row.name} | **{name}** | {figure} | {_ratio(row)} | {_target(row)} | {met} |")
            else:
                table.append(f"| | {name} | {figure} | | | |")
    return "\n".join(table) + "\n"


def _ratio(row: Comparison) -> str:
    ratio = row.ratio()
    return "" if ratio is None else f"{ratio:.2f}"


def _target(row: Comparison) -> str:
    if row.target is None:
        return ""
    return f"{'≤' if row.at_most else '≥'} {row.target:g}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _slug(text: str) -> str:
    return (
        re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*", "", text).lower()).strip("-").lstrip("0123456789-")[:40].strip("-")
    )


def _picture(rows: list[Comparison]) -> str:
    """Horizontal bars with whiskers from quartile to quartile; a dashed line where the target puts ours."""
    y = 8
    body: list[str] = []
    for row in rows:
        body.append(f'<text x="8" y="{y + 16}" font-weight="600">{escape(row.name)}</text>')
        y += 26
        target = _in_units(row)
        most = max([*(max(row.figure(name), spread(samples)[1]) for name, samples in row.samples.items()), target or 0])
        scale = _BARS / most if most else 0
        top = y
        for name, samples in row.samples.items():
            figure, (low, high) = row.figure(name), spread(samples)
            body.append(f'<text class="small" x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
            kind = "ours" if name == OURS else "theirs"
            bar = f'x="{_LABEL}" y="{y + 4}" width="{max(figure * scale, 1):.1f}" height="14" rx="2"'
            body.append(f'<rect class="{kind}" {bar}/>')
            if high > low and not row.best:
                left, right, middle = _LABEL + low * scale, _LABEL + high * scale, y + 11
                body.append(f'<path class="whisker" d="M{left:.1f} {middle}H{right:.1f}"/>')
            text = f"{_number(figure)} {row.unit}".strip()
            x = _LABEL + max(figure, 0 if row.best else high) * scale + 6
            body.append(f'<text class="small" x="{x:.1f}" y="{y + 15}">{escape(text)}</text>')
            y += _ROW
        if target is not None:
            x = _LABEL + target * scale
            body.append(f'<path class="target" d="M{x:.1f} {top}V{top + _ROW}"/>')
        y += 10
    width = _LABEL + _BARS + _VALUE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img">'
        f"<title>{escape(rows[0].item)}</title><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _in_units(row: Comparison) -> float | None:
    if row.target is None:
        return None
    return row.target if row.against is None else row.target * row.figure(row.against)
