"""The command ``trioconn``, and ``python -m trioconn``.

::

    demo            what the library does, shown on loopback in a few seconds
    get URL         real requests over one connector: throughput, latencies, connections, errors by stage
    trace URL       one connection seen from the inside: lookup, race, proxies, TLS
    doctor [URL]    what of this machine concerns connections, for a bug report

Exit codes: 0 all is well, 1 something that was asked for failed, 2 the command line is wrong, 130 interrupted.
``trace`` tells the stage that failed: see `trioconn._cli.trace`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .doctor import add_doctor, doctor
from .get import add_get, get
from .terminal import prepare
from .trace import add_trace, trace

_COMMANDS = {"get": get, "trace": trace, "doctor": doctor}
INTERRUPTED = 130
USAGE = 2


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="trioconn", description="Connections for trio, seen from the command line.", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="what the library does, shown on loopback in a few seconds",
        description="Starts servers on loopback, uses them, and checks each thing that it says.",
        allow_abbrev=False,
    )
    demo.add_argument("--trace", action="store_true", help="instead, what `trace` shows of good and bad ways")
    add_get(commands.add_parser)
    add_trace(commands.add_parser)
    add_doctor(commands.add_parser)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv`), and return the exit code.

    Raises:
      SystemExit: the command line is wrong, or asked for help.
    """
    arguments = parser().parse_args(argv)
    prepare()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "demo":
        from .demo import demo

        return demo(parser().parse_args if arguments.trace else None)
    try:
        return _COMMANDS[arguments.command](arguments)
    except (ValueError, ImportError) as error:  # InvalidTargetError is a ValueError; a missing extra says which it is
        print(f"trioconn {arguments.command}: {error}", file=sys.stderr)
        return USAGE
