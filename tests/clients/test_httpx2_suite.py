"""httpx2's and httpx's own client tests, with our transport in the place of their default one, on trio.

They are fetched when the test runs and are no part of this project. httpx2's source distributions have carried no tests
so far; then those of httpx 0.28.1 are taken, from which httpx2 and its tests descend, and which differ in the name.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.soak]

FILES = ["tests/client", "tests/test_timeouts.py", "tests/test_auth.py", "tests/test_asgi.py", "tests/test_api.py"]

EXCLUDED = {
    "tests/client/test_proxies.py": "asks which of httpx2's own transports a client makes, by looking inside them",
}
"""What is not run, each with its reason. Besides, what fails with httpx2's own transport says nothing about ours."""

PLUGIN = '''
import atexit, os, pathlib
import httpx2, httpx2._client, httpx2._config, trioconn, trioconn.httpx2
import pytest

class Default(trioconn.httpx2.Transport):
    """Takes what httpx2 gives its default transport."""
    requests = 0

    def __init__(self, verify=True, cert=None, trust_env=True, http1=True, http2=False,
                 limits=httpx2._config.DEFAULT_LIMITS, proxy=None, **more):
        assert not any(more.values()), more
        if proxy is not None:
            proxy = trioconn.Proxy(str(proxy.url), auth=proxy.auth, headers=proxy.headers.raw)
        super().__init__(
            ssl=httpx2.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env),
            limit=limits.max_connections, keepalive_timeout=limits.keepalive_expiry, proxy=proxy)

    async def handle_async_request(self, request):
        Default.requests += 1
        return await super().handle_async_request(request)

if os.environ["TRANSPORT"] == "ours":
    httpx2._client.AsyncHTTPTransport = Default
    atexit.register(lambda: pathlib.Path("requests").write_text(str(Default.requests)))

def pytest_runtest_logreport(report):
    with open("outcomes", "a") as file:
        print(report.outcome, report.nodeid, file=file)

@pytest.fixture
def anyio_backend():
    return "trio"
'''


def fetch(folder: Path, library: str) -> Path | None:
    """The source tree of the first distribution that has tests, None if none can be had."""
    own = f"{library}=={importlib.metadata.version(library)}"
    for requirement in dict.fromkeys([own, "httpx==0.28.1"]):
        name = requirement.split("==")[0]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "-d", folder, requirement]
        if subprocess.run(command, capture_output=True, timeout=80, check=False).returncode:
            continue
        with tarfile.open(next(folder.glob(f"{name}-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        tree = next(path for path in folder.glob(f"{name}-*") if path.is_dir())
        if (tree / "tests").is_dir():
            return tree
    return None


@pytest.mark.parametrize("library", ["httpx2", "httpx"])
def test_client_passes_its_own_tests(tmp_path: Path, library: str) -> None:
    for module in (library, "uvicorn", "chardet", "cryptography"):
        pytest.importorskip(module)
    tree = fetch(tmp_path, library)
    if tree is None:
        pytest.skip("no source distribution with tests can be had here")
    tests = tmp_path / "run" / "tests"
    tests.parent.mkdir()
    (tree / "tests").rename(tests)
    for path in tests.rglob("*.py") if library == "httpx2" else ():
        path.write_text(re.sub(r"\b(httpx|httpcore)\b", r"\g<1>2", path.read_text(encoding="utf-8")), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    conftest = tests / "conftest.py"
    text = conftest.read_text(encoding="utf-8")
    if "port=" not in text:
        text = text.replace('loop="asyncio")', f'loop="asyncio", port={port})')
    plugin = PLUGIN if library == "httpx2" else PLUGIN.replace("httpx2", "httpx")
    conftest.write_text(text + plugin, encoding="utf-8")
    (tests.parent / "pytest.ini").write_text("[pytest]\nmarkers =\n    network\n    copied_from\n", encoding="utf-8")
    theirs, _ = run_suite(tests.parent, "theirs")
    ours, output = run_suite(tests.parent, "ours")
    assert len(ours["passed"]) > 150, output
    assert ours["failed"] - theirs["failed"] == set(), output
    assert len(theirs["failed"]) < 30, "hardly anything could be compared"
    assert int((tests.parent / "requests").read_text()) >= 20, "the suite hardly used our transport"


def run_suite(folder: Path, transport: str) -> tuple[dict[str, set[str]], str]:
    """The names of the tests that passed and that failed, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not network", "-p", "no:cacheprovider", "--tb=short"]
    command += [f"--deselect={name}" for name in EXCLUDED]
    command += [name for name in FILES if (folder / name).exists()]
    path = os.pathsep.join(map(str, [folder, Path(__file__).parents[2]]))
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "TRANSPORT": transport},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    outcomes: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
    for line in (folder / "outcomes").read_text().splitlines():
        outcome, name = line.split(" ", 1)
        outcomes[outcome].add(name)
    (folder / "outcomes").unlink()
    return outcomes, run.stdout[-8000:] + run.stderr[-2000:]
