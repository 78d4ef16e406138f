"""The hosts file: its lines, its size, and when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trioconn._establish import hosts_file

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_lines_that_say_nothing_hide_no_others() -> None:
    text = "# hosts\n\nnonsense b.test\n192.0.2.1 a.test # x\n   \n192.0.2.2\ta.test b.test\n"
    assert hosts_file.parse(text) == {"a.test": ("192.0.2.1", "192.0.2.2"), "b.test": ("192.0.2.2",)}


def test_the_longest_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    line = b"192.0.2.1 a.test\n"
    path.write_bytes(b"#" * (hosts_file.MOST_BYTES - len(line) - 1) + b"\n" + line)
    hosts = hosts_file.HostsFile(path)
    assert hosts.readable  # as long as nobody knows better
    assert hosts.addresses("a.test") == ("192.0.2.1",)
    assert hosts.readable
    path.write_bytes(path.read_bytes() + b"#")
    assert hosts.addresses("a.test") == ()
    assert not hosts.readable


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.1 a.test\n", encoding="utf-8")
    read: list[Any] = []
    parse = hosts_file.parse
    monkeypatch.setattr(hosts_file, "parse", lambda text: (read.append(text), parse(text))[1])
    hosts = hosts_file.HostsFile(path)
    for _ in range(3):
        assert hosts.addresses("a.test") == ("192.0.2.1",)
    assert len(read) == 1


def test_the_systems_own_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts"
    path.write_text("192.0.2.1 a.test\n", encoding="utf-8")
    monkeypatch.setattr(hosts_file, "default_path", lambda: str(path))
    assert hosts_file.HostsFile().addresses("a.test") == ("192.0.2.1",)
