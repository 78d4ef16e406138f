"""TLS without I/O: what is buffered, what has ended, and where records end."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioconn._establish.tls_engine import Engine, is_eof


def record(size: int) -> bytes:
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + bytes(size)


class Dumb:
    """Takes the place of the BIO where only the framing is looked at."""

    pending = 0

    def write(self, data: bytes) -> None:
        pass


@given(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 400), st.lists(st.integers(1, 50), max_size=40))
def test_framing(sizes: list[int], cut: int, chunks: list[int]) -> None:
    """However the records arrive, it is known whether the last one is whole."""
    engine = Engine(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True, server_hostname=None, session=None)
    engine._incoming = Dumb()
    data = b"".join(map(record, sizes))
    ends = {0}
    for size in sizes:
        ends.add(max(ends) + 5 + size)
    data = data[: len(data) - min(cut, len(data))] if data else data
    at = 0
    for chunk in [*chunks, len(data)]:
        piece = data[at : at + chunk]
        if piece:
            engine.feed(piece)
            at += len(piece)
        assert bool(engine._rest or engine._part_of_header) == (at not in ends)


class Pair:
    """Two engines and nothing between them."""

    def __init__(self, authority, version: ssl.TLSVersion) -> None:
        self.client = Engine(authority.client(), server_side=False, server_hostname="a.test", session=None)
        self.server = Engine(authority.server(version=version), server_side=True, server_hostname=None, session=None)
        waiting = [self.client, self.server]
        while waiting:
            for engine in list(waiting):
                try:
                    engine.handshake()
                    waiting.remove(engine)
                except ssl.SSLWantReadError:
                    pass
                self.carry()

    def carry(self) -> None:
        for engine, other in (self.client, self.server), (self.server, self.client):
            if engine.has_output:
                other.feed(engine.take())


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request, authority) -> Pair:
    return Pair(authority, request.param)


def is_13(pair: Pair) -> bool:
    return pair.client.object.version() == "TLSv1.3"


def test_all_records_in_one_read(pair) -> None:
    data = bytes(range(256)) * 200
    pair.server.object.write(data)
    pair.carry()
    assert not pair.client.is_quiet
    assert pair.client.read(70_000) == data
    assert pair.client.is_quiet
    assert pair.client.read(70_000) is None


@pytest.mark.parametrize("limit", [1, 100, 16384, 16385, 40_000])
def test_no_more_than_asked_for(pair, limit) -> None:
    data = bytes(range(256)) * 200
    pair.server.object.write(data)
    pair.carry()
    got = b""
    while (part := pair.client.read(limit)) is not None:
        assert 0 < len(part) <= limit
        got += part
    assert got == data


def test_the_end_comes_after_the_data(pair) -> None:
    pair.server.object.write(b"last")
    pair.server.say_goodbye()
    pair.carry()
    assert pair.client.read(100) == b"last"
    assert not pair.client.is_quiet
    assert pair.client.read(100) == b""
    assert pair.client.read(100) == b""
    assert pair.client.ended


def test_an_error_comes_after_the_data(pair) -> None:
    pair.server.object.write(b"last")
    pair.client.feed(pair.server.take() + record(50))
    assert pair.client.read(100) == b"last"
    assert pair.client.read(100) is None
    assert isinstance(pair.client.trouble, ssl.SSLError)
    assert not is_eof(pair.client.trouble)
    assert pair.client.trouble.__traceback__ is None
    assert pair.client.look() == "error"


def test_an_end_without_close_notify(pair) -> None:
    pair.server.object.write(b"last")
    pair.carry()
    pair.client.feed(b"")
    assert pair.client.read(100) == b"last"
    assert pair.client.read(100) is None
    assert is_eof(pair.client.trouble)
    assert pair.client.look() == "server closed"


def test_tickets_are_held_until_the_server_speaks(pair) -> None:
    assert pair.client.is_quiet
    assert not pair.server.has_output
    pair.server.object.write(b"x")
    sent = pair.server.take()
    assert (len(sent) > 200) == is_13(pair)
    pair.client.feed(sent)
    assert pair.client.read(100) == b"x"
    assert pair.client.object.session.has_ticket


def test_a_look_at_tickets(pair) -> None:
    tickets = pair.server._held
    if not is_13(pair):
        assert not tickets
        return
    pair.client.feed(tickets[:100])
    assert pair.client.look() == "stray bytes"  # a part of a record: nobody knows yet of what
    assert not pair.client.is_quiet
    pair.client.feed(tickets[100:])
    assert pair.client.look() == ""
    assert pair.client.is_quiet


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_look_takes_nothing(pair, limit) -> None:
    pair.server.object.write(b"unasked")
    pair.carry()
    assert pair.client.look() == "stray bytes"
    assert pair.client.look() == "stray bytes"
    assert not pair.client.is_quiet
    assert pair.client.pending() == 7
    got = b""
    while len(got) < 7:
        got += pair.client.read(limit)
    assert got == b"unasked"
    assert pair.client.is_quiet


def test_a_part_of_a_record_is_not_quiet(pair) -> None:
    """OpenSSL has it in a buffer that it does not tell about."""
    if tickets := pair.server._held:
        pair.client.feed(tickets)
        assert pair.client.look() == ""
    pair.server.object.write(b"unasked")
    data = pair.server._outgoing.read()
    for at in range(1, len(data)):
        pair.client.feed(data[at - 1 : at])
        assert pair.client.look() == "stray bytes"
        assert not pair.client.is_quiet
    pair.client.feed(data[-1:])
    assert pair.client.look() == "stray bytes"


def test_what_was_not_taken_goes_first(pair) -> None:
    pair.client.object.write(b"one")
    first = pair.client.take()
    pair.client.put_back(first[10:])
    assert pair.client.has_output
    assert not pair.client.is_quiet
    pair.client.object.write(b"two")
    pair.server.feed(first[:10] + pair.client.take())
    assert pair.server.read(100) == b"onetwo"


def test_write_takes_everything(pair) -> None:
    assert pair.client.object.write(bytes(200_000)) == 200_000  # what `TLSStream.send_all` relies on
