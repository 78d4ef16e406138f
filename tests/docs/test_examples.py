"""Every block of code in the documentation runs.

Blocks of a page share a namespace and run in order. A ``python`` block may await at its top level; then it runs in a
`trio.run` of its own. One that defines tests is given to a real pytest. A ``text`` block of the class ``output`` is
what the block before it prints. The commands of a ``console`` block are held against what they name: the command's own
parser, the extras, the sessions of nox, the files.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser as MarkdownParser
from sybil.parsers.rest import CodeBlockParser

import trioconn
from trioconn._cli import parser

from .world import World, world

if TYPE_CHECKING:
    from sybil import Example

__all__ = ["world"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Their examples are files with tests of their own.
ELSEWHERE = {"asyncio.md"}
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *DOCS.rglob("*.rst"), *DOCS.glob("*.md")]
    if "newsfragments" not in path.parts and "_build" not in path.parts and path.name not in ELSEWHERE
)
ADAPTED = {"httpx2", "httpcore2", "httpx", "anyio", "opentelemetry", "aiohttp"}
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
SESSIONS = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))


def run_python(example: Example) -> None:
    namespace = example.namespace
    source = "\n" * (example.line + example.parsed.line_offset) + str(example.parsed)
    code = compile(source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if re.search(r"^(async )?def test_", example.parsed, re.MULTILINE):
        run_tests(str(example.parsed))
        return
    if "windows" in str(example.region.lexemes.get("options", {}).get("class", "")):
        return  # it compiles; the pipe that it names is some program's
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        made = eval(code, namespace)
        if inspect.iscoroutine(made):
            # A coroutine may be handed on to another run: nothing of it has been started.
            async def block() -> None:
                await made

            trio.run(block)
    namespace["__printed__"] = printed.getvalue()


def run_tests(source: str) -> None:
    """Give the tests of a block to pytest, as its reader would."""
    Path("test_block.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:randomly"]
    command += ["-W", "error", "-o", "trio_mode=true", "--rootdir", ".", "test_block.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("SSL_CERT_FILE", None)
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr


def compare_output(example: Example) -> str | None:
    if "output" not in str(example.region.lexemes.get("options", {}).get("class", "")):
        return None
    wanted, got = str(example.parsed).rstrip() + "\n", example.namespace["__printed__"].rstrip() + "\n"
    if doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS):
        return None
    return f"it printed:\n{got}\nnot:\n{wanted}"


def check_commands(example: Example) -> None:
    for line in str(example.parsed).splitlines():
        for command in re.split(r"&&|\|", line.partition("  #")[0]):
            check_command([word for word in shlex.split(command) if "=" not in word.split("/")[0] or word[0] == "-"])


def check_command(words: list[str]) -> None:
    if not words:
        return
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= EXTRAS, words
    program, *rest = words
    program = Path(program).name
    if program.startswith("python") and rest[:1] == ["-m"]:
        program, *rest = rest[1:]
    if program == "trioconn":
        with contextlib.suppress(SystemExit) as _:
            parser().parse_args(rest)
            return
        raise AssertionError(f"not a command line of trioconn: {rest}")
    if program == "nox":
        assert not rest or (rest[0] == "-s" and rest[1].split("-")[0].split("(")[0] in SESSIONS), words
    elif program == "pytest":
        for word in rest:
            assert not word.startswith("tests") or (ROOT / word).exists(), word
    elif program not in {"pip", "venv", "run", "towncrier", "git"}:
        assert (ROOT / words[0]).exists() or (program.startswith("python") and (ROOT / rest[0]).exists()), words
    for word in rest:
        if word.startswith((".ci/", "tests/", "docs/")) and "NUMBER" not in word and "_build" not in word:
            assert (ROOT / word).exists(), word


LANGUAGES = {"python": run_python, "console": check_commands, "text": compare_output}


def sybil_for(path: Path) -> Sybil:
    block_parser = CodeBlockParser if path.suffix == ".rst" else MarkdownParser
    parsers: list[Any] = [block_parser(language, evaluator) for language, evaluator in LANGUAGES.items()]
    return Sybil(parsers)


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def missing(error: BaseException) -> str | None:
    """What this machine or this environment lacks, if that is why an example fails."""
    if isinstance(error, BaseExceptionGroup):  # it passed the nursery of the world
        return next(filter(None, map(missing, error.exceptions)), None)
    if isinstance(error, ModuleNotFoundError) and error.name in ADAPTED:
        return error.name
    if isinstance(error, ImportError) and "trioconn[" in str(error):
        return str(error)
    if isinstance(error, NotImplementedError) and not hasattr(socket, "AF_UNIX"):
        return "Unix sockets"
    return None


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_blocks_run(path: Path, world: World) -> None:
    # Sybil reads the page; the examples of a page are one test, since each builds on those before it.
    for example in sybil_for(path).parse(path).examples():
        try:
            example.evaluate()
        except Exception as error:
            what_is_missing = missing(error)
            if what_is_missing:
                pytest.skip(f"{label(path)}:{example.line} needs {what_is_missing}")
            error.add_note(f"in the block at {label(path)}:{example.line}")
            raise


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_blocks_are_of_known_languages(path: Path) -> None:
    """A block that nothing runs would be out of date one day."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".rst":
        found = re.findall(r"^ *\.\. (?:code-block|code|sourcecode):: *(\S*)", text, re.MULTILINE)
        for included in re.findall(r"^\.\. literalinclude:: (\S+)", text, re.MULTILINE):
            mine = included.startswith(("../examples/", "../../tests/cli/golden/"))
            assert mine, "only files that have tests of their own"
        assert not re.search(r"[^:]::\n\n +(import|async|await|from) ", text), "a literal block: give it a language"
    else:
        found = re.findall(r"^```(\S*)\n(?:.|\n)*?^```$", text, re.MULTILINE)
    assert set(found) <= {*LANGUAGES, "toml"}, set(found)


def test_the_world_is_that_of_the_library(world: World) -> None:
    """What stands in for `TCPConnector` is one."""

    async def look() -> None:
        assert type(trioconn.TCPConnector()).__mro__[1].__name__ == "TCPConnector"

    trio.run(look)
