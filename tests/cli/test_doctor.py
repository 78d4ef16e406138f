"""``doctor``: all of it is there, and no login."""

from __future__ import annotations

import errno
import importlib
import os
import re
import socket
from importlib import metadata
from types import SimpleNamespace

import pytest

from trioconn._cli import main


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def run(*arguments: str, **environ: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            return main(["doctor", *arguments]), *capsys.readouterr()

    return run


def test_everything_is_there(doctor) -> None:
    code, out, err = doctor("https://localhost")
    assert (code, err) == (0, "")
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    assert titles == ["versions", "proxies", "certificates", "routes", "resolver"]
    for needle in ("trio 0.", "OpenSSL", "none is set", "authorities", "IPv6", "IPv4", "127.0.0.1", " ms)"):
        assert needle in out
    assert "\x1b" not in out


def test_proxies_and_the_reason_of_the_choice(doctor) -> None:
    code, out, _ = doctor(
        "https://www.example.test/",
        https_proxy="http://alice:hunter2@proxy.test:3128",
        http_proxy="gopher://alice:hunter2@x",
        no_proxy="internal.test",
    )
    assert code == 0
    assert "https_proxy    http://proxy.test:3128\n" in out
    assert "http_proxy     unusable: " in out
    assert "https://www.example.test/: http://proxy.test:3128, because https_proxy names it" in out
    assert "hunter2" not in out and "alice" not in out
    _, out, _ = doctor("https://a.internal.test", https_proxy="http://proxy.test", no_proxy="internal.test")
    assert "direct, because no_proxy has the entry 'internal.test'" in out


def test_an_unusable_variable_is_a_finding_and_no_crash(doctor) -> None:
    code, out, err = doctor("http://a.test", http_proxy="ftp://alice:hunter2@x")
    assert (code, err) == (0, "")
    assert "http_proxy" in out and "hunter2" not in out


@pytest.mark.skipif(os.name == "nt", reason="the names of Windows' variables have no case")
def test_a_cgi_program_is_told(doctor) -> None:
    _, out, _ = doctor("http://a.test", HTTP_PROXY="http://evil.test", REQUEST_METHOD="GET")
    assert "HTTP_PROXY is ignored" in out
    assert "http://a.test: direct" in out


@pytest.mark.parametrize("url", ["gopher://x", "https://user:hunter2@x", "https://", "tcp://x"])
def test_a_bad_url_is_a_usage_error(doctor, url: str) -> None:
    code, _, err = doctor(url)
    assert code == 2
    assert err.startswith("trioconn doctor: ")
    assert "hunter2" not in err


def test_a_missing_file_of_authorities_is_a_finding(doctor, tmp_path) -> None:
    code, out, _ = doctor(SSL_CERT_FILE=str(tmp_path / "none.pem"))
    assert code == 0
    assert "none.pem does not exist" in out


def test_a_name_that_does_not_exist(doctor) -> None:
    code, out, _ = doctor("http://nothing.invalid")
    assert code == 0
    assert out.count("nothing: ") == 2 or "no answer" in out


def test_an_address_is_not_looked_up(doctor) -> None:
    code, out, _ = doctor("http://127.0.0.1:8000")
    assert code == 0
    assert "\nresolver\n" not in out and "\nroutes\n" in out


def test_what_is_not_installed_is_missing_or_left_out(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("h11", "trustme"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    _, out, _ = doctor()
    assert "h11 missing\n" in out
    assert "trustme" not in out


def test_an_empty_variable_means_no_proxy(doctor) -> None:
    _, out, _ = doctor("http://a.test", http_proxy=" ")
    assert "  http_proxy     empty: no proxy\n" in out
    assert "http://a.test: direct" in out


def test_trust_that_cannot_be_loaded_is_a_finding(doctor, tmp_path) -> None:
    file = tmp_path / "missing" / "keys"  # Python makes no context at all if it cannot write there
    code, out, _ = doctor(SSLKEYLOGFILE=str(file))
    assert code == 0
    assert f"  SSLKEYLOGFILE  {file}\n" in out
    assert re.search("^  loaded +failed: .*No such file", out, re.MULTILINE)


def test_a_missing_route_is_a_finding(doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(socket.socket):
        def connect(self, address: object) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    module = importlib.import_module("trioconn._cli.doctor")  # the package has a function of that name
    monkeypatch.setattr(module, "socket", SimpleNamespace(**{**vars(socket), "socket": Cut}))
    code, out, _ = doctor()
    assert code == 0
    assert "  IPv6           none: Network is unreachable\n  IPv4           none: Network is unreachable\n" in out
