"""The project's checks. `nox` runs those that a change must pass; `nox -l` lists all.

Only the standard library's venv (or virtualenv) is used, so nothing but nox itself has to be there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Iterable

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False  # a machine rarely has all of them
nox.options.sessions = ["lint", "types", "docs", "tests", "lowest"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
OLDEST = PYTHONS[0]
# flake8-async's rules about checkpoints and generators are off unless they are asked for.
ASYNC_RULES = "ASYNC,ASYNC900"  # 910 to 912, a checkpoint on every path, are held by tests of the public functions


def pyenv_folders() -> list[str]:
    """The folders in which pyenv, where it is used, keeps its Pythons.

    Its shims find only the versions that are activated, and answer for the others with an error.
    """
    root = os.environ.get("PYENV_ROOT")
    if not root and (pyenv := shutil.which("pyenv")):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
    folders = Path(root or Path.home() / ".pyenv", "versions").glob("3.*/bin")
    return [str(folder) for folder in sorted(folders) if any(folder.glob(f"python{python}") for python in PYTHONS)]


# In front of the shims; only names with a minor version are looked up, so the order among them does not matter.
os.environ["PATH"] = os.pathsep.join([*pyenv_folders(), os.environ["PATH"]])


def group(name: str) -> list[str]:
    """The requirements of a dependency group, for a pip that does not know groups yet."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def lowest_versions(requirements: Iterable[str]) -> list[str]:
    """Every lower bound as the only version allowed."""
    return [requirement.replace(">=", "==") for requirement in requirements if ">=" in requirement]


def run_tests(session: nox.Session, *args: str) -> None:
    """pytest, with the system's own folder for temporary files.

    Those of nox are too deep for the path of a Unix socket, and may be closed to other users, as which nginx works.
    """
    session.run("python", "-m", "pytest", *args, env={"TMPDIR": tempfile.gettempdir()})


def windows_python(session: nox.Session, version: str) -> tuple[str, ...]:
    """The words that run a Windows Python under Wine; it is built first if it is not there."""
    directory = str(Path(session.cache_dir, "wine").absolute())
    session.run("tests/wine/setup.sh", directory, version, external=True)
    return "tests/wine/run.sh", directory, version


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on every Python that is found."""
    session.install("-e", ".[all]", *group("test"))
    run_tests(session, *session.posargs)


@nox.session(python=OLDEST)
@nox.parametrize("of", [nox.param("core", id="core"), nox.param("extras", id="extras")])
def lowest(session: nox.Session, of: str) -> None:
    """The tests, on the lowest versions that pyproject.toml allows: of our own dependencies, or of the extras.

    Not of both at once: some extras need newer versions of what we need ourselves (httpx2 of idna, for one).
    """
    project = PYPROJECT["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    if of == "core":
        wanted, what = project["dependencies"], "-e.[demo,socks,dns,cli]"
    else:
        wanted, what = [requirement for extra in extras.values() for requirement in extra], "-e.[all]"
    constraints = Path(session.create_tmp(), f"lowest-{of}.txt")
    constraints.write_text("\n".join(lowest_versions(wanted)) + "\n", encoding="utf-8")
    session.install(what, *group("test"), "-c", str(constraints))
    run_tests(session, *session.posargs)


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """The tests under coverage, with branches."""
    session.install("-e", ".[all]", *group("coverage"))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs, env={"TMPDIR": tempfile.gettempdir()})
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=OLDEST)
def coverage_windows(session: nox.Session) -> None:
    """What Windows alone runs, under coverage with branches, by the tests of pipes; wants what `wine` wants."""
    session.install(*(word for word in group("coverage") if word.startswith("coverage")))
    run = windows_python(session, "3.13")
    rules = "--rcfile=tests/wine/coverage.ini"
    session.run("coverage", "erase", rules)
    tests = ("-m", "pytest", "-p", "no:cacheprovider", "tests/pipes")
    session.run(*run, "-m", "coverage", "run", rules, *tests, *session.posargs, external=True)
    session.run("coverage", "combine", rules)
    session.run("coverage", "report", rules)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Style, and trio's own pitfalls."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = [str(path) for path in sorted(Path("trioconn").rglob("*.py"))]
    session.run("flake8-async", f"--enable={ASYNC_RULES}", *sources)


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Strict types within, complete types for users."""
    session.install("-e", ".[all]", *group("types"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "trioconn", "--ignoreexternal")


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """The documentation; a warning is an error."""
    session.install("-e", ".[all]", *group("docs"), *group("test"))
    session.run("python", "-m", "pytest", "-q", "tests/docs/test_build.py")  # links and anchors, too
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """Everything beside the peers, into docs/benchmarks.md; then the tests that measure. Wants nginx, and quiet.

    What follows `--` goes to tests/benchmarks/run.py: names of parts, or `--quick`, which writes nothing.
    """
    session.install("-e", ".[all]", *group("bench"))
    session.run("python", "tests/benchmarks/run.py", *session.posargs, success_codes=[0, 1])  # 1: a target was missed
    if not session.posargs:
        session.run("python", "-m", "pytest", "-m", "bench", "-s", "--ignore=tests/benchmarks")


@nox.session(python=OLDEST)
def soak(session: nox.Session) -> None:
    """The tests that run for minutes. TRIOCONN_SOAK_SECONDS, …_PROGRAMS and …_SEED say for how many, and which."""
    session.install("-e", ".[all]", *group("test"))
    session.run("python", "-m", "pytest", "-m", "soak", "-s", "-o", "faulthandler_timeout=0", *session.posargs)


# What decides, and the tests that ought to notice when it decides otherwise: these alone, for they run for each mutant.
# Not test_fairness.py, whose simulations are slow, nor what meets the module only on its way to something else.
POOL_TESTS = ["pool/test_rules.py", "pool/test_corners.py", "pool/test_walk.py"]
MUTATED = {
    "_pool": POOL_TESTS,
    "_pool_books": POOL_TESTS,
    "_pool_state": POOL_TESTS,
    "_establish.plan": ["plan", "security/test_keys.py"],
    "_names": ["names", "faults/test_fuzz.py"],
    "_establish.dns_cache": ["resolve/test_cache.py"],
    "_establish.addresses": ["race/test_addresses.py"],
    "_establish.http_connect": ["proxies/test_http_connect.py", "proxies/test_fuzz.py"],
    "_establish.environment": ["proxies/test_environment.py"],
    "_establish.hosts_file": [
        "resolve/test_hosts_file.py",
        "resolve/test_system_resolver.py::test_hosts_file",
        "resolve/test_system_resolver.py::test_where_the_hosts_file_is",
        "faults/test_fuzz.py",
    ],
}


@nox.session(python=OLDEST)
def mutants(session: nox.Session) -> None:
    """Mutation testing of the modules that decide, in copies; see docs/mutation.md.

    Names of mutants (`"trioconn._names.*"`) run these alone; options (`--max-children=1`) go to mutmut.
    """
    import resource  # mutmut, too, wants Unix

    # Not the project itself: what is tested is the copy, mutated.
    session.install("mutmut>=3.8", *PYPROJECT["project"]["dependencies"], "socksio", "dnspython", *group("test"))
    # A loop that a mutant has made endless may collect something.
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    options = [word for word in session.posargs if word.startswith("-")]
    names = [word for word in session.posargs if not word.startswith("-")]
    home = Path.cwd()
    for module, tests in MUTATED.items():
        wanted = [name for name in names if name.startswith(f"trioconn.{module}.")]
        if names and not wanted:
            continue
        copy = Path(session.create_tmp(), module)
        shutil.rmtree(copy, ignore_errors=True)
        for name in ("trioconn", "tests", "docs"):
            shutil.copytree(home / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        shutil.copy(home / "README.md", copy)
        own = {
            "only_mutate": [f"trioconn/{module.replace('.', '/')}.py"],
            "pytest_add_cli_args_test_selection": [f"tests/{test}" for test in tests],
        }
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in own.items())
        project = (home / "pyproject.toml").read_text(encoding="utf-8")
        project = project.replace("[tool.mutmut]\n", f"[tool.mutmut]\n{lines}")
        (copy / "pyproject.toml").write_text(project, encoding="utf-8")
        with session.chdir(copy):
            session.run("mutmut", "run", *options, *wanted)
            session.run("mutmut", "results")


@nox.session(python=OLDEST)
def clients(session: nox.Session) -> None:
    """The adapters for clients, and httpx2's and httpx's own tests on our pool, which are fetched for it."""
    session.install("-e", ".[all]", *group("test"), *group("clients"))
    session.run("python", "-m", "pytest", "-m", "not bench", "tests/clients", *session.posargs)


@nox.session(python=OLDEST)
def lab(session: nox.Session) -> None:
    """Happy eyeballs against real kernels; Linux and root. Writes docs/happy-eyeballs.md."""
    session.install("-e", ".[dns]", "anyio", "aiohappyeyeballs", "trustme")
    script = "tests/lab/lab.sh"
    try:
        session.run(script, "up", external=True)
        session.run(script, "bench", "--write", "docs/happy-eyeballs.md", *session.posargs, external=True)
    finally:
        session.run(script, "down", external=True)


@nox.session(python=False)
@nox.parametrize("version", [nox.param("3.11", id="3.11"), nox.param("3.13", id="3.13")])
def wine(session: nox.Session, version: str) -> None:
    """The tests of pipes and of the core on a Windows Python under Wine (Debian; root, for its packages)."""
    wanted = session.posargs or [f"tests/{name}" for name in ("pipes", "connector", "pool", "plan", "names", "resolve")]
    run = windows_python(session, version)
    session.run(*run, "-m", "pytest", "-p", "no:cacheprovider", *wanted, external=True)
