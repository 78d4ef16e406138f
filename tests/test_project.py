"""The shape of the project, held by machine: which way arrows point, what is pure, what is documented.

These tests read sources with `ast` rather than import them, so that they also hold for modules whose extra is missing
or whose platform is another.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "trioconn"

# A module imports only what stands above it. This is the tree of docs/design.md, read from top to bottom.
ORDER = """
    _values
    _errors
    _names
    _route
    _proxy
    events
    _pool_state
    _pool_books
    _pool
    _establish.environment
    _establish.plan
    _establish.addresses
    _establish.dns_cache
    _establish.hosts_file
    _establish.policy
    _establish.race
    _establish.answers
    _establish.resolve
    _establish.system_resolver
    _establish.dns_resolver
    _establish.sockets
    _establish.foreign
    _establish.tcp
    _establish.unix
    _establish.windows_calls
    _establish.windows_pipe_stream
    _establish.windows_pipe
    _establish.named_pipe
    _establish.http_connect
    _establish.tls_context
    _establish.tls_engine
    _establish.tls
    _establish.tls_sessions
    _establish.tls_step
    _establish.http_tunnel
    _establish.socks
    _establish.dial
    _observing
    _statistics
    _watch
    _connection
    _attempt
    _alarm
    _crew
    _waiter
    _shell
    _connector
    _connectors
    happyeyeballs
    aiohttp_trace
    testing
    _http11
    _network_stream
    _httpx
    httpcore2
    httpx2
    httpx
    anyio
    opentelemetry
    aio
    _cli
    __main__
""".split()  # noqa: SIM905 - a column is the tree

# Those that decide and do no I/O: they do not import trio. (`_errors` does, for the classes that its own derive from.)
PURE = {
    "_values",
    "_names",
    "_route",
    "_proxy",
    "events",
    "_pool_state",
    "_pool_books",
    "_pool",
    "_establish.environment",
    "_establish.plan",
    "_establish.addresses",
    "_establish.dns_cache",
    "_establish.hosts_file",
    "_establish.policy",
    "_establish.windows_calls",
    "_establish.http_connect",
    "_observing",
    "_statistics",
    "aiohttp_trace",
}
# What adapters have in common is bound by the same rule as they are.
SHARED = {"_http11", "_network_stream", "_httpx"}
ADAPTERS = {"httpx2", "httpx", "httpcore2", "anyio", "opentelemetry", "aio"} | SHARED
EXTRAS = {
    *("aiohttp", "anyio", "dns", "httpcore", "httpcore2", "httpx", "httpx2", "opentelemetry", "rich", "socksio"),
    *("trio_asyncio", "trustme"),
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports: `name` of `module`, or all of `module` where `name` is None."""

    module: str
    name: str | None
    line: int
    typing_only: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# "" is the package itself: it only re-exports, and is exempt. So is every other `__init__` that does only that.
MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES.pop("", None)
MODULES.pop("_establish", None)


def position(module: str) -> int:
    """Where `module` stands in `ORDER`; the parts of a package stand where the package does."""
    for candidate in (module, module.split(".")[0]):
        if candidate in ORDER:
            return ORDER.index(candidate)
    raise KeyError(module)


def imports_of(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    typing_only = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).removeprefix("typing.") == "TYPE_CHECKING"
        for statement in block.body
        for inner in ast.walk(statement)
    }
    package = path.relative_to(ROOT).parent.parts
    return [found for node in ast.walk(tree) for found in _imports(node, package, id(node) in typing_only)]


def _imports(node: ast.AST, package: tuple[str, ...], typing_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, None, node.lineno, typing_only) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            whole = f"{module}.{alias.name}"
            # `from . import x` imports a module where there is one of that name.
            if whole.removeprefix("trioconn.") in MODULES or whole == "trioconn._establish":
                yield Import(whole, None, node.lineno, typing_only)
            else:
                yield Import(module, alias.name, node.lineno, typing_only)


def ours(module: str) -> str | None:
    """The name within the package of a module of ours, None for others. The package itself is ``""``."""
    if module == "trioconn":
        return ""
    return module.removeprefix("trioconn.") if module.startswith("trioconn.") else None


each_module = pytest.mark.parametrize("module", sorted(MODULES))


@each_module
def test_is_listed(module: str) -> None:
    try:
        position(module)
    except KeyError:
        pytest.fail(f"add {module} to ORDER in {Path(__file__).name}, below everything that it imports")


@each_module
def test_arrows_point_one_way(module: str) -> None:
    for found in imports_of(MODULES[module]):
        target = ours(found.module)
        if target is None or found.typing_only or module in ADAPTERS:
            continue
        here = f"{module}, line {found.line}"
        if target == "":
            # Who is below everything may use the package as a user would; for all others it is a circle.
            assert position(module) >= ORDER.index("happyeyeballs"), f"{here}: imports from the package itself"
        elif target.split(".")[0] != module.split(".")[0] or target in ORDER:
            assert position(target) < position(module), f"{here}: imports {target}, which does not stand above it"


@each_module
def test_pure_modules_do_not_import_trio(module: str) -> None:
    if module in PURE:
        for found in imports_of(MODULES[module]):
            assert found.module.split(".")[0] != "trio", f"{module}, line {found.line}: imports trio, and is to be pure"
            target = ours(found.module)
            if target and not found.typing_only:
                assert target in PURE | {"_errors"}, f"{module}, line {found.line}: imports {target}, which is not pure"


@each_module
def test_adapters_see_public_names_only(module: str) -> None:
    if module not in ADAPTERS:
        return
    for found in imports_of(MODULES[module]):
        target = ours(found.module)
        if target is not None and target not in SHARED:
            path = [*target.split("."), *([found.name] if found.name else [])]
            assert not any(part.startswith("_") for part in path), (
                f"{module}, line {found.line}: an adapter uses what users can use, and not {'.'.join(path)}"
            )


@each_module
def test_no_private_name_crosses_a_module(module: str) -> None:
    for found in imports_of(MODULES[module]):
        if ours(found.module) is not None and found.name:
            private = found.name.startswith("_") and not found.name.startswith("__")
            assert not private, f"{module}, line {found.line}: {found.name} belongs to {found.module} alone"


def public_names() -> list[tuple[str, str]]:
    """Every public module of the package, and every name that it exports."""
    names = []
    for module in ["", *MODULES]:
        if any(part.startswith("_") for part in module.split(".")):
            continue
        path = MODULES.get(module, PACKAGE / "__init__.py")
        names.append((module, ""))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                names.append((module, node.name))
            elif module == "" and isinstance(node, ast.ImportFrom):
                names += [(module, alias.asname or alias.name) for alias in node.names]
    return names


@pytest.mark.parametrize(("module", "name"), public_names())
def test_is_documented(module: str, name: str) -> None:
    """Every public module, class, function and method has a docstring of its own."""
    dotted = f"trioconn.{module}".strip(".")
    try:
        thing = importlib.import_module(dotted)
    except ImportError as error:
        # A missing library is answered with the extra that brings it; parts of `trioconn.aio` leave that to the whole.
        if "trioconn[" not in str(error) and error.name not in EXTRAS:
            raise
        pytest.skip(str(error))
    if not name:
        assert thing.__doc__ or not MODULES.get(module, PACKAGE / "__init__.py").stat().st_size, (
            f"{dotted}: no docstring"
        )
        return
    if name.startswith("_"):
        return
    thing = getattr(thing, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    assert thing.__doc__, f"{dotted}.{name}: no docstring"
    if inspect.isclass(thing) and thing.__module__.startswith("trioconn"):
        for attribute, value in vars(thing).items():
            if inspect.isfunction(value) and not attribute.startswith("_"):
                assert inspect.getdoc(getattr(thing, attribute)), f"{dotted}.{name}.{attribute}: no docstring"


def test_importing_the_package_imports_no_extra() -> None:
    script = "import json, sys, trioconn; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert not EXTRAS & set(json.loads(run.stdout))


def tracked_files() -> list[Path]:
    try:
        run = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return [path for name in run.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    """No path of somebody's home or workplace and no package registry's host: both are only true on one machine."""
    homes = ["root", "work", "farm", r"home/\w+", r"Users/\w+"]
    # In pieces, so that this file passes its own test.
    hosts = ["py" + "pi", "python" + "hosted", "npm" + "js", "deb" + "ian"]
    pattern = re.compile(rf"(?:^|[^\w.])/(?:{'|'.join(homes)})/|\b(?:{'|'.join(hosts)})\.(?:org|com)\b")
    bad = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        bad += [
            f"{path.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if pattern.search(line)
        ]
    assert not bad, "\n".join(bad)


def test_news_fragments_have_valid_names() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
    kinds = "|".join(kind["directory"] for kind in config["type"])
    for path in (ROOT / config["directory"]).iterdir():
        if path.name not in {"README.rst", ".gitignore"}:
            assert re.fullmatch(rf"(\d+|\+[\w-]+)\.({kinds})(\.\d+)?\.rst", path.name), path.name
            assert path.read_text(encoding="utf-8").strip(), f"{path.name} is empty"


def test_readme_has_exactly_two_commands() -> None:
    """One that shows the library at work and one that runs its tests; `.ci/run` takes them from there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 2
    assert shlex.split(commands[0])[-3:] == ["-m", "trioconn", "demo"]
    assert shlex.split(commands[1])[-2:] == ["-m", "pytest"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for needle in re.findall(r"readme_command '(.+?)'", ci):
        assert [needle in command for command in commands].count(True) == 1
    assert len(re.findall(r"readme_command '(.+?)'", ci)) == 2


def test_top_level_holds_nothing_else() -> None:
    expected = {"README.md", "LICENSE", "LICENSE.APACHE2", "LICENSE.MIT"}
    expected |= {"pyproject.toml", "noxfile.py", "trioconn", "tests", "docs"}
    found = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in found if not name.startswith(".")} <= expected
