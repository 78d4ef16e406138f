"""Measures everything, and writes docs/benchmarks.md with its pictures: ``python run.py [--quick] [PART…]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import competing
import crowd
import hot_path
import many_hosts
import pooled_requests
import report
import servers
import startup
from measuring import Comparison

PARTS: dict[str, ModuleType] = {
    module.__name__: module for module in (hot_path, pooled_requests, crowd, many_hosts, competing, startup)
}
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main() -> int:
    """Exit code 1 if a target was not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look; writes no page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios to FILE, too")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rows: list[Comparison] = []
    for name in options.parts or PARTS:
        if PARTS[name] in (competing, startup) and not servers.has_nginx():
            print(f"{name}: skipped, nginx is not installed", file=sys.stderr)
            continue
        measured = PARTS[name].measure(quick=options.quick)
        print("\n".join(report.lines(measured)), flush=True)
        rows += measured
    if options.json is not None:
        options.json.write_text(
            json.dumps([{"name": row.name, "value": row.value(), "target": row.target} for row in rows])
        )
    if not options.quick and not options.parts:
        report.write(rows, PAGE)
        print(f"wrote {PAGE}")
    return int(any(row.met() is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
