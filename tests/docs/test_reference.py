"""The reference is complete, and so is the page for those who come from aiohttp."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trioconn

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.rst"))
# A package is public as a whole, by what its `__init__` exports; its modules are its own affair.
PUBLIC_MODULES = [
    "trioconn",
    *sorted(
        f"trioconn.{path.stem}"
        for path in (ROOT / "trioconn").iterdir()
        if not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").exists())
    ),
]


def load(dotted: str) -> ModuleType:
    try:
        return importlib.import_module(dotted)
    except ImportError as error:
        if "trioconn[" not in str(error):  # a missing library is answered with the extra that brings it
            raise
        pytest.skip(str(error))


def look_up(module: ModuleType, name: str) -> object:
    """A name of a module, which may be imported only now."""
    try:
        return getattr(module, name)
    except ImportError as error:
        if "trioconn[" not in str(error):
            raise
        pytest.skip(str(error))


def public_names(module: ModuleType) -> list[str]:
    """What a module exports, or where it does not say so what it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def documented() -> dict[str, str]:
    """Dotted names that the reference describes, and with which members: names, ``"all"`` or none."""
    found: dict[str, str] = {}
    for page in REFERENCE:
        module = ""
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^\.\. (currentmodule|auto\w+):: (\S+)\n((?: +:[^\n]*\n)*)", text, re.MULTILINE):
            kind, name, options = match.groups()
            if kind == "currentmodule":
                module = name
            else:
                members = re.search(r":members: *(.*)", options)
                found[name if kind == "automodule" else f"{module}.{name}"] = (
                    "" if members is None else members[1] or "all"
                )
    return found


def test_modules_are_found() -> None:
    assert {"trioconn", "trioconn.events", "trioconn.testing", "trioconn.happyeyeballs"} <= set(PUBLIC_MODULES)


@pytest.mark.parametrize("dotted", PUBLIC_MODULES)
def test_every_public_name_is_in_the_reference(dotted: str) -> None:
    pages = documented()
    module = load(dotted)
    assert dotted == "trioconn" or dotted in pages, f"{dotted}: no page of docs/reference describes it"
    if pages.get(dotted):
        return  # with its members
    for name in public_names(module):
        assert f"{dotted}.{name}" in pages or inspect.ismodule(look_up(module, name)), f"{dotted}.{name}"


@pytest.mark.parametrize("dotted", PUBLIC_MODULES)
def test_methods_are_shown(dotted: str) -> None:
    """A class with methods or properties of its own is described with them."""
    pages = documented()
    module = load(dotted)
    if pages.get(dotted):
        return
    for name in public_names(module):
        thing = look_up(module, name)
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            own = [
                attribute
                for attribute, value in vars(thing).items()
                if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
            ]
            # What a route can do is for the pool; its fields stand in its docstring.
            assert not own or pages[f"{dotted}.{name}"] or thing is trioconn.Route, f"{dotted}.{name}: {own}"


def test_nothing_is_described_that_does_not_exist() -> None:
    for dotted in documented():
        module, _, name = dotted.rpartition(".")
        if dotted not in PUBLIC_MODULES:
            look_up(load(module), name)


@pytest.mark.parametrize("dotted", PUBLIC_MODULES)
def test_cancellation_of_every_async_function_is_told(dotted: str) -> None:
    table = (DOCS / "reference" / "index.rst").read_text(encoding="utf-8")
    pages = documented()
    module = load(dotted)
    for name in public_names(module):
        thing = look_up(module, name)
        shown = pages.get(f"{dotted}.{name}", "all")
        members = vars(thing).items() if inspect.isclass(thing) else [(name, thing)]
        for member, value in members:
            if shown not in {"all", ""} and member not in shown.split(", "):
                continue  # for the rest of its package
            if inspect.iscoroutinefunction(value) and (not member.startswith("_") or member == "__aexit__"):
                wanted = "async with" if member == "__aexit__" else member
                assert re.search(rf"(?<!\w){wanted}(?!\w)", table), f"{dotted}.{name}.{member}"


# What aiohttp's connector has: parameters, methods, properties, helpers; and aiohappyeyeballs' names.
OF_AIOHTTP = {
    "helpers": "EMPTY_SCHEMA_SET HTTP_SCHEMA_SET WS_SCHEMA_SET HIGH_LEVEL_SCHEMA_SET NEEDS_CLEANUP_CLOSED AddrInfoType "
    "SocketFactoryType Buffer _DeprecationWaiter _wait_for_close _ConnectTunnelConnection _TransportPlaceholder abort",
    "Connection": "_key _connector _protocol transport protocol add_callback release close closed __bool__ __del__",
    "BaseConnector parameters": "keepalive_timeout force_close limit limit_per_host enable_cleanup_closed loop "
    "timeout_ceil_threshold",
    "BaseConnector data": "_conns _acquired _acquired_per_host _waiters _cleanup_handle _cleanup_closed_handle "
    "_placeholder_future _loop _factory",
    "BaseConnector methods": "close abort_ssl closed force_close limit limit_per_host connect req traces timeout "
    "_available_connections _get _release _release_waiter _cleanup _cleanup_closed __aenter__ __aexit__ __enter__ "
    "__exit__ allowed_protocol_schema_set _wait_for_available_connection _create_connection _close "
    "_update_proxy_auth_header_and_build_proxy_req",
    "DNS": "_DNSCacheTable next_addrs expired clear_dns_cache _resolve_host _resolve_host_with_throttle "
    "_throttle_dns_futures _convert_hosts_to_addr_infos",
    "TLS": "_make_ssl_context _SSL_CONTEXT_VERIFIED _SSL_CONTEXT_UNVERIFIED _start_tls_connection _get_ssl_context "
    "_get_fingerprint _warn_about_tls_in_tls _check_loop_for_start_tls _loop_supports_start_tls _fail_on_no_start_tls",
    "TCPConnector parameters": "verify_ssl fingerprint use_dns_cache ttl_dns_cache dns_cache_max_size family "
    "ssl_context ssl local_addr resolver happy_eyeballs_delay interleave socket_factory ssl_shutdown_timeout",
    "TCPConnector methods": "_create_direct_connection _create_proxy_connection _wrap_create_connection "
    "_wrap_existing_connection family use_dns_cache",
    "the others": "UnixConnector NamedPipeConnector path",
    "errors": "ClientConnectorError ClientConnectorSSLError ClientConnectorCertificateError UnixClientConnectorError "
    "ClientConnectorDNSError ClientProxyConnectionError ClientHttpProxyError ServerFingerprintMismatch",
    "tracing": "on_connection_queued_start on_connection_queued_end on_connection_create_start "
    "on_connection_create_end on_connection_reuseconn on_dns_resolvehost_start on_dns_resolvehost_end on_dns_cache_hit "
    "on_dns_cache_miss",
    "aiohappyeyeballs": "start_connection addr_infos local_addr_infos happy_eyeballs_delay interleave loop "
    "socket_factory addr_to_addr_infos pop_addr_infos_interleave remove_addr_infos AddrInfoType SocketFactoryType",
}


@pytest.mark.parametrize("part", OF_AIOHTTP)
def test_everything_of_aiohttp_has_its_row(part: str) -> None:
    page = (DOCS / "from-aiohttp.rst").read_text(encoding="utf-8")
    # The first cells of all rows, which may go on in further lines.
    cells = re.findall(r"^   \* - (.*(?:\n       .*)*)", page, re.MULTILINE)
    told = " ".join(cells) + page.partition("\nTracing\n")[2].partition("\naiohappyeyeballs\n")[0]
    missing = [name for name in OF_AIOHTTP[part].split() if not re.search(rf"(?<!\w){name}(?!\w)", told)]
    assert not missing


def test_the_tree_of_the_design_is_that_of_the_package() -> None:
    """Each module stands in docs/design.md, in the order in which tests/test_project.py holds the imports."""
    design = (DOCS / "design.md").read_text(encoding="utf-8")
    tree = re.search(r"```text\ntrioconn/\n(.*?)```", design, re.DOTALL)
    project = (ROOT / "tests" / "test_project.py").read_text(encoding="utf-8")
    order = re.search(r'ORDER = """(.*?)"""', project, re.DOTALL)
    assert tree and order
    named: list[str] = []
    folder = ""
    for line in tree[1].splitlines():
        indent = len(line) - len(line.lstrip())
        for name in re.findall(r"(?<![\w./])(\w+)(?:\.py|/)(?=\s)", line + " "):
            if name == "_establish":
                folder = "_establish."
            elif name != "__init__":
                named.append((folder if indent == 4 else "") + name)
    assert named == order[1].split()


def test_links_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", readme) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
