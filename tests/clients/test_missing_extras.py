"""Who uses what needs an extra that is not installed is told its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

import trioconn


def adapter(name: str) -> Callable[[], object]:
    """Import an adapter anew."""

    def use() -> object:
        return importlib.import_module(f"trioconn.{name}")

    return use


def socks() -> object:
    return trioconn.TCPConnector(proxy="socks5://proxy.test").route("http://a.test")


@pytest.mark.parametrize(
    ("library", "extra", "use"),
    [
        *((name, name, adapter(name)) for name in ("anyio", "httpx", "httpx2", "httpcore2", "opentelemetry")),
        ("socksio", "socks", socks),
        ("dns.asyncresolver", "dns", trioconn.DNSResolver),
    ],
)
def test_a_missing_extra_is_named(
    library: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"trioconn.{extra}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install '?trioconn\[{extra}\]"):
        use()
    assert f"trioconn.{extra}" not in sys.modules, "half of a module would be found by the next import"
