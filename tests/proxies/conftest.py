"""Peers for the proxy tests: scripted ones on memory streams, and the real programs on loopback."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn._connection import Connection
from trioconn._errors import ConnectError, ConnectorError
from trioconn._proxy import Proxy
from trioconn._route import Route

if TYPE_CHECKING:
    import trustme

Script = Callable[[trio.StapledStream[Any, Any]], Awaitable[object]]
Step = Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]]
LOGIN = ("hidden-user", "hidden-password")


@dataclass
class Meeting:
    """What came of a step that met a scripted proxy.

    Attributes:
      stream: what the step made, or None.
      error: what it raised, or None.
      lower: the stream to the proxy.
      cancelled: whether it was cancelled.
    """

    lower: trio.abc.Stream
    stream: trio.abc.Stream | None = None
    error: ConnectError | None = None
    cancelled: bool = False

    async def is_closed(self) -> bool:
        try:
            await self.lower.send_all(b"x")
        except trio.ClosedResourceError:
            return True
        except trio.BrokenResourceError:
            return False
        return False


@pytest.fixture
def meet() -> Callable[..., Awaitable[Meeting]]:
    """``await meet(step, script, cancel_after=None)``: run `step` on a memory stream whose other end `script` has.

    With `cancel_after`, the step is cancelled after that many rounds of the scheduler.
    """

    async def meet(step: Step, script: Script, *, cancel_after: int | None = None) -> Meeting:
        client, server = trio.testing.memory_stream_pair()
        meeting = Meeting(client)
        scope = trio.CancelScope()

        async def play(stream: trio.StapledStream[Any, Any]) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await script(stream)

        async def cancel() -> None:
            assert cancel_after is not None
            for _ in range(cancel_after):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, server)
            if cancel_after is not None:
                nursery.start_soon(cancel)
            with scope:
                try:
                    meeting.stream = await step(client)
                except ConnectError as exc:
                    meeting.error = exc
            meeting.cancelled = scope.cancelled_caught
            nursery.cancel_scope.cancel()
        return meeting

    return meet


@dataclass
class Reports:
    """An observer's notebook: classes and fields in order."""

    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: type, **fields: Any) -> None:
        event(at=0.0, route=None, dial=0, **fields)  # the fields exist
        self.seen.append((event.__name__, fields))


@pytest.fixture
def reports() -> Reports:
    return Reports()


# Everything that is recorded, and no login in it


class Recorder:
    """Hears all that the library says during a test: events, logs, errors, reprs of what it makes, and what is added.

    It learns the logins from the proxies that the test makes, so that no test can forget to name one.
    """

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.heard: list[object] = []
        self.said: list[str] = []
        self.found: list[str] = []

    def learn(self, *parts: str) -> None:
        """Logins in plain and as Basic. Those of a few letters are in every second word, and are not looked for."""
        self.secrets.update(part for part in parts if len(part) > 5)
        basic = base64.b64encode(":".join(parts).encode("utf-8", "replace")).decode()
        if len(basic) >= 8:
            self.secrets.add(basic)

    def learn_from(self, url: object, auth: object) -> None:
        found = re.search(r"//([^/@]*)@", url) if isinstance(url, str) else None
        if found is not None:
            self.learn(*found[1].partition(":")[::2])
        if isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(part, str) for part in auth):
            self.learn(*auth)

    def hear(self, thing: object) -> None:
        """Keep `thing` for the end. Of very many the older ones are searched now: errors hold their frames."""
        self.heard.append(thing)
        if len(self.heard) > 1000:
            self._search(self.heard[:900])
            del self.heard[:900]

    def check(self) -> None:
        self._search(self.heard)
        self._search(self.said)
        assert not self.found, f"a login in what was recorded: {self.found}"

    def _search(self, things: Iterable[object]) -> None:
        for text in chain.from_iterable(map(_texts, things)):
            if any(secret in text for secret in self.secrets):
                self.found.append(text[:500])


def _texts(thing: object) -> Iterator[str]:
    """All that can be read of `thing`; of an error, with all that caused it."""
    yield f"{thing} {thing!r}"
    error = thing
    while isinstance(error, BaseException):
        yield f"{error} {error!r} {error.args!r}"
        error = error.__cause__ or error.__context__


class _Log(logging.Handler):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.DEBUG)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        self._recorder.said.append(f"{record.getMessage()} {record.args!r} {record.exc_info and record.exc_info[1]!r}")


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """The recorder of each test here: at its end no login may be in anything that was recorded.

    ``recorder.hear(…)``: have something else searched, such as what an origin received.
    """
    recorder = Recorder()

    def note(owner: type, name: str, before: Callable[..., object] | None = None) -> None:
        original = getattr(owner, name)

        def noted(self: object, *args: Any, **options: Any) -> None:
            if before is not None:
                before(self, args, options)
            original(self, *args, **options)
            recorder.hear(self)

        monkeypatch.setattr(owner, name, noted)

    def observe(connector: object, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        options["observers"] = [*options.get("observers", ()), recorder.hear]

    note(
        Proxy, "__init__", lambda _, args, options: recorder.learn_from(args[0] if args else None, options.get("auth"))
    )
    note(ConnectorError, "__init__")
    note(Route, "__post_init__")
    note(trioconn.BaseConnector, "__init__", observe)
    note(Connection, "__init__")
    log, root = _Log(recorder), logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(log)
    yield recorder
    root.removeHandler(log)
    monkeypatch.undo()
    recorder.check()


# The real programs


@dataclass
class RealProxy:
    """A running proxy: the URL without login, and what it wants to be told."""

    host: str
    port: int
    https_port: int | None = None
    login: tuple[str, str] | None = None


def _program(*names: str) -> str:
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
        if found:
            return found
    pytest.skip(f"{names[0]} is not installed")


def free_port() -> int:
    """A port that is free now. Programs that cannot take port 0 leave no better way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], folder: Path, *ports: int, env: dict[str, str] | None = None) -> Iterator[None]:
    """Run a server until the block is left; wait until all `ports` accept. Ends it, and it alone, by its id."""
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 20
        for port in ports:
            while True:
                if process.poll() is not None:
                    pytest.fail(f"{command[0]} ended: {log.read_text(errors='replace')[-2000:]}")
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, f"{command[0]} does not listen: {log.read_text()[-2000:]}"
                    time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: it and its children
            process.wait(5)


@pytest.fixture(scope="session")
def microsocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RealProxy]]:
    """``microsocks(login=False)``: a SOCKS 5 proxy."""
    program = _program("microsocks")
    with contextlib.ExitStack() as stack:
        known: dict[bool, RealProxy] = {}

        def start(*, login: bool = False) -> RealProxy:
            if login not in known:
                port = free_port()
                arguments = ["-u", LOGIN[0], "-P", LOGIN[1]] if login else []
                command = [program, "-i", "127.0.0.1", "-p", str(port), *arguments]
                stack.enter_context(running(command, tmp_path_factory.mktemp("microsocks"), port))
                known[login] = RealProxy("127.0.0.1", port, login=LOGIN if login else None)
            return known[login]

        yield start


@pytest.fixture(scope="session")
def tinyproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProxy]:
    """An HTTP proxy with BasicAuth."""
    program = _program("tinyproxy")
    folder, port = tmp_path_factory.mktemp("tinyproxy"), free_port()
    config = folder / "tinyproxy.conf"
    config.write_text(
        f'Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Error\nLogFile "{folder}/log"\n'
        f"Allow 127.0.0.1\nBasicAuth {LOGIN[0]} {LOGIN[1]}\n"
    )
    with running([program, "-d", "-c", str(config)], folder, port):
        yield RealProxy("127.0.0.1", port, login=LOGIN)


@pytest.fixture(scope="session")
def squid(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA) -> Iterator[RealProxy]:
    """squid with an http and an https port; the latter has a certificate of `ca` for localhost and 127.0.0.1."""
    program = _program("squid")
    if b"--with-openssl" not in subprocess.run([program, "-v"], capture_output=True, check=False).stdout:
        pytest.skip("this squid was built without OpenSSL; squid-openssl is needed")
    folder, port, https_port = tmp_path_factory.mktemp("squid"), free_port(), free_port()
    folder.chmod(0o755)
    for parent in folder.parents[:3]:  # squid gives up root and must still reach its files
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o011)
    pem = folder / "proxy.pem"
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    # Workers of squid take turns at a shared-memory name; without a service name of its own it would meet another's.
    service = f"trioconn{os.getpid()}"
    config = folder / "squid.conf"
    config.write_text(
        f"http_port 127.0.0.1:{port}\n"
        f"https_port 127.0.0.1:{https_port} tls-cert={pem}\n"
        f"pid_filename {folder}/squid.pid\n"
        f"cache_log {folder}/cache.log\n"
        "access_log none\ncache deny all\nvia off\nshutdown_lifetime 0 seconds\nhosts_file /etc/hosts\n"
        "dns_nameservers 127.0.0.1\npinger_enable off\nnetdb_filename none\n"
        "acl loopback dst 127.0.0.0/8\nacl denied port 9\n"
        "http_access deny denied\nhttp_access allow loopback\nhttp_access deny all\n"
        f"coredump_dir {folder}\n"
    )
    if os.geteuid() == 0:
        shutil.chown(folder, "proxy", "proxy")
        shutil.chown(pem, "proxy", "proxy")
    with running([program, "-N", "-n", service, "-f", str(config)], folder, port, https_port):
        yield RealProxy("127.0.0.1", port, https_port)


@pytest.fixture(scope="session")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProxy]:
    """apache2 with mod_proxy_connect."""
    program = _program("apache2", "httpd")
    modules = next(
        (path for path in map(Path, ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules")) if path.is_dir()), None
    )
    if modules is None or not (modules / "mod_proxy_connect.so").exists():
        pytest.skip("apache2 is there, but not its mod_proxy_connect")
    folder, port = tmp_path_factory.mktemp("apache"), free_port()
    config = folder / "apache.conf"
    wanted = ("mpm_event", "authz_core", "unixd", "proxy", "proxy_connect")
    loads = "".join(
        f"LoadModule {name}_module {modules}/mod_{name}.so\n"
        for name in wanted
        if (modules / f"mod_{name}.so").exists()
    )
    config.write_text(
        f"ServerRoot {folder}\nServerName localhost\nListen 127.0.0.1:{port}\nPidFile {folder}/pid\n{loads}"
        f"ErrorLog {folder}/error.log\nProxyRequests On\nAllowCONNECT 1-65535\n"
        "<Proxy *>\nRequire all granted\n</Proxy>\n"
    )
    with running([program, "-f", str(config), "-D", "FOREGROUND"], folder, port):
        yield RealProxy("127.0.0.1", port)


@pytest.fixture(scope="session")
def dante(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProxy]:
    """dante, a SOCKS 4 and 5 server."""
    program = _program("danted", "sockd")
    if sys.platform != "linux":
        pytest.skip("the interface is named lo only on Linux")
    folder, port = tmp_path_factory.mktemp("dante"), free_port()
    config = folder / "danted.conf"
    config.write_text(
        f"logoutput: {folder}/log\ninternal: 127.0.0.1 port = {port}\nexternal: lo\n"
        "socksmethod: none\nclientmethod: none\n"
        "client pass {\n from: 127.0.0.0/8 to: 0.0.0.0/0\n}\nsocks pass {\n from: 127.0.0.0/8 to: 0.0.0.0/0\n}\n"
    )
    with running([program, "-f", str(config), "-p", f"{folder}/pid"], folder, port):
        yield RealProxy("127.0.0.1", port)
