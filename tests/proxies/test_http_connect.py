"""The CONNECT codec: golden bytes, every bad answer, and the same outcome whatever pieces it comes in."""

from __future__ import annotations

import tracemalloc

import pytest

from trioconn._establish.http_connect import (
    MOST_ANSWER,
    MOST_BODY,
    MOST_FIELDS,
    MOST_HEAD,
    MOST_INTERIM,
    ConnectExchange,
    Malformed,
    Opened,
    Outcome,
    Refused,
)
from trioconn._names import parse_host
from trioconn._proxy import Proxy

WITH_HEADERS = (
    b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n"
    b"Proxy-Authorization: Basic dTpw\r\nX-One: 1\r\nx-one: \xc3\xa9\r\n\r\n"
)


def exchange() -> ConnectExchange:
    connect = ConnectExchange("a.test:443")
    connect.request()
    return connect


def run(answer: bytes, size: int = 0) -> Outcome | None:
    """The outcome of `answer` in pieces of `size`, and then the end; what was not fed counts as leftover."""
    connect = exchange()
    size = size or len(answer) or 1
    for start in range(0, len(answer), size):
        outcome = connect.feed(answer[start : start + size])
        if isinstance(outcome, Opened):
            return Opened(outcome.status, outcome.leftover + answer[start + size :])
        if outcome is not None:
            return outcome
    return connect.feed(b"")


def outcome_of(answer: bytes) -> Outcome | None:
    """The outcome of `answer`, which must not depend on the pieces."""
    whole = run(answer)
    for size in (1, 2, 3, 7, 1000):
        piecewise = run(answer, size)
        if isinstance(whole, Malformed):  # h11 notices some nonsense before a line is complete, in other words
            assert isinstance(piecewise, Malformed)
        else:
            assert piecewise == whole
    return whole


@pytest.mark.security(30)
@pytest.mark.security(31)
@pytest.mark.case("urllib3#3615")
@pytest.mark.parametrize(
    ("proxy", "host", "port", "expected"),
    [
        (Proxy("http://p.test"), "a.test", 443, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n"),
        (Proxy("http://p.test"), "A.test.", 80, b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n"),
        (Proxy("http://p.test"), "::1", 443, b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n"),
        (
            Proxy("http://p.test"),
            "straße.test",
            443,
            b"CONNECT xn--strae-oqa.test:443 HTTP/1.1\r\nHost: xn--strae-oqa.test:443\r\n\r\n",
        ),
        (
            Proxy("https://u:p@p.test", headers=[("X-One", "1"), ("x-one", "é")]),
            "a.test",
            443,
            WITH_HEADERS,
        ),
    ],
)
def test_request_carries_authority_host_and_what_is_for_the_proxy(
    proxy: Proxy, host: str, port: int, expected: bytes
) -> None:
    connect = ConnectExchange(parse_host(host).authority(port), proxy.request_headers)
    assert connect.request() == expected


@pytest.mark.security(34)
@pytest.mark.parametrize("status", [200, 201, 204, 206, 299])
def test_every_2xx_opens(status: int) -> None:
    assert outcome_of(b"HTTP/1.1 %d x\r\n\r\n" % status) == Opened(status, b"")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 \r\n\r\n",
        b"HTTP/1.0 200 Connection established\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nProxy-Agent: x\r\n\r\n",
        # h11 accepts these, and decides.
        b"HTTP/1.1 200 OK\nX: y\n\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
    ],
)
def test_tunnel_begins_exactly_behind_the_blank_line(head: bytes) -> None:
    for leftover in (b"", b"\x16\x03\x01", b"\r\n\r\n", b"HTTP/1.1 403 no\r\n\r\n", bytes(100_000)):
        assert run(head + leftover) == run(head + leftover, 1) == Opened(200, leftover)


@pytest.mark.security(47)
@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Content-Length: 5\r\nTransfer-Encoding: chunked"],
)
def test_framing_of_2xx_is_ignored_wherever_the_answer_is_cut(framing: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\nhello"
    for cut in range(1, len(answer)):
        connect = exchange()
        outcome = connect.feed(answer[:cut])
        rest = answer[cut:]
        if outcome is None:
            outcome, rest = connect.feed(rest), b""
        assert isinstance(outcome, Opened)
        assert outcome.leftover + rest == b"hello"


@pytest.mark.security(34)
@pytest.mark.security(35)
@pytest.mark.security(29)
@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 403, 404, 407, 429, 500, 502, 503, 599, 600, 999])
def test_everything_else_refuses(status: int) -> None:
    answer = b"HTTP/1.1 %d Not here\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n" % status
    headers = ((b"content-length", b"0"), (b"location", b"/x"))
    assert outcome_of(answer) == Refused(status, "Not here", headers, b"")


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_switching_protocols_refuses(version: bytes) -> None:
    assert outcome_of(b"HTTP/%b 101 x\r\nUpgrade: y\r\n\r\nz" % version) == Refused(101, "Switching Protocols")
    assert isinstance(outcome_of(b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 101 x\r\n\r\n"), Refused)


def test_switching_protocols_refuses_also_if_it_was_asked_for() -> None:
    connect = ConnectExchange("a.test:443", ((b"Upgrade", b"y"), (b"Connection", b"upgrade")))
    connect.request()
    outcome = connect.feed(b"HTTP/1.1 101 ok\r\nUpgrade: y\r\n\r\nz")
    assert outcome == Refused(101, "ok", ((b"upgrade", b"y"),))


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"Content-Length: 5\r\n\r\nhello world", b"hello"),
        (b"Content-Length: 50\r\n\r\nhello", b"hello"),
        (b"\r\nuntil the end", b"until the end"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nrest", b"hello"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b""),
        (b"Content-Length: 10000000000\r\n\r\n" + b"x" * 100_000, b"x" * MOST_BODY),
        (b"\r\n" + b"x" * 100_000, b"x" * MOST_BODY),
    ],
)
def test_body_of_a_refusal_is_kept_up_to_a_limit(answer: bytes, body: bytes) -> None:
    outcome = outcome_of(b"HTTP/1.1 502 Bad\r\n" + answer)
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.reason, outcome.body) == (502, "Bad", body)


def test_body_that_consists_of_framing_is_not_read_for_ever() -> None:
    chunk = b"1;" + b"x" * 1000 + b"\r\ny\r\n"
    answer = b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 200
    outcome = outcome_of(answer)
    assert isinstance(outcome, Refused)
    assert 0 < len(outcome.body) <= MOST_ANSWER // len(chunk)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"\n",
        b"hello\r\n\r\n",
        b"<html>",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/1.10 200 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 +200\r\n\r\n",
        b"HTTP/1.1 -200\r\n\r\n",
        b"HTTP/1.1  200\r\n\r\n",
        b"HTTP/1.1\t200\r\n\r\n",
        b"HTTP/1.1 099\r\n\r\n",
        b"HTTP/1.1 000\r\n\r\n",
        b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\x00: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\rZ: w\r\n\r\n",
        b"HTTP/1.1 403 no\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 403 no\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 403 no\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"CONNECT a.test:443 HTTP/1.1\r\n\r\n",
    ],
)
def test_malformed_answers(answer: bytes) -> None:
    outcome = outcome_of(answer)
    assert isinstance(outcome, Malformed)
    assert outcome.why.isprintable()
    assert len(outcome.why) < 300


def test_end_of_stream_at_every_offset_of_the_head() -> None:
    answer = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"
    for cut in range(len(answer)):
        assert isinstance(outcome_of(answer[:cut]), Malformed)
    assert outcome_of(answer) == Opened(200, b"")


def head_of(length: int) -> bytes:
    start, end = b"HTTP/1.1 200 OK\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (length - len(start) - len(end)) + end


@pytest.mark.security(45)
def test_head_is_limited_also_if_its_end_comes_with_it() -> None:
    assert outcome_of(head_of(MOST_HEAD)) == Opened(200, b"")
    assert isinstance(run(head_of(MOST_HEAD + 1)), Malformed)
    assert isinstance(outcome_of(head_of(MOST_HEAD + 1)), Malformed)
    assert isinstance(outcome_of(head_of(10 * MOST_HEAD)), Malformed)
    assert isinstance(outcome_of(b"x" * MOST_HEAD * 2), Malformed)


def test_head_without_an_end_is_given_up_at_the_limit() -> None:
    connect = exchange()
    answer = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MOST_HEAD
    fed = 0
    while connect.feed(answer[fed : fed + 1]) is None:
        fed += 1
    assert fed == MOST_HEAD


def test_fields_are_counted() -> None:
    assert outcome_of(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MOST_FIELDS + b"\r\n") == Opened(200, b"")
    assert isinstance(outcome_of(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (MOST_FIELDS + 1) + b"\r\n"), Malformed)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_answers_are_counted(status: int) -> None:
    interim = b"HTTP/1.1 %d x\r\n\r\n" % status
    final = b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert outcome_of(interim * MOST_INTERIM + final) == Opened(200, b"hello")
    assert isinstance(outcome_of(interim * (MOST_INTERIM + 1) + final), Malformed)
    assert isinstance(outcome_of(interim * 10_000), Malformed)
    assert isinstance(outcome_of(interim), Malformed)


def test_interim_answers_count_towards_the_head() -> None:
    interim = b"HTTP/1.1 103 x\r\nX: " + b"x" * (MOST_HEAD // 2) + b"\r\n\r\n"
    assert isinstance(outcome_of(interim * 2 + b"HTTP/1.1 200 OK\r\n\r\n"), Malformed)
    assert outcome_of(interim + b"HTTP/1.1 200 OK\r\n\r\n") == Opened(200, b"")


def test_what_the_proxy_says_is_escaped_and_cut() -> None:
    outcome = run(b"HTTP/1.1 502 \x1b[31m" + b"\xff" * 1000 + b"\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(outcome, Malformed | Refused)
    refused = run(b"HTTP/1.1 502 " + b"\xff" * 1000 + b"\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(refused, Refused)
    assert refused.reason.isprintable()
    assert len(refused.reason) <= 201


def test_nothing_can_follow_an_outcome() -> None:
    connect = exchange()
    connect.feed(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\nProxy-Authenticate: Basic\r\n\r\n")
    assert isinstance(connect.outcome, Refused)
    with pytest.raises(RuntimeError):
        connect.feed(b"HTTP/1.1 200 OK\r\n\r\n")


def test_reprs_hold_no_login() -> None:
    proxy = Proxy("http://hidden:hidden@p.test", headers={"X": "hidden"})
    connect = ConnectExchange("a.test:443", proxy.request_headers)
    connect.request()
    assert "hidden" not in repr(connect)
    connect.feed(b"HTTP/1.1 502 x\r\nX: hidden\r\n\r\n")
    assert connect.refusing
    connect.feed(b"hidden")
    connect.feed(b"")
    assert "hidden" not in repr(connect)
    assert "hidden" not in repr(connect.outcome)


def test_memory_is_bounded() -> None:
    piece = b"HTTP/1.1 502 x\r\n\r\n" + bytes(10_000_000)
    tracemalloc.start()
    try:
        connect = exchange()
        outcome = connect.feed(piece)
        assert isinstance(outcome, Refused)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection unanswered"),
        (b"HTTP/1.1 200", "closed the connection in the middle of its answer"),
        (b"HTTP/1.1 100 x\r\n\r\n", "closed the connection unanswered"),  # an interim answer is none
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MOST_FIELDS + 1) + b"\r\n", "sent more than 100 header fields"),
        (b"HTTP/1.1 103 Hints\r\n\r\n" * (MOST_INTERIM + 1), "sent more than 10 interim answers"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MOST_HEAD + b"\r\n\r\n", "sent a head of more than 16384 bytes"),
    ],
)
def test_what_was_wrong_is_said(answer: bytes, why: str) -> None:
    assert run(answer) == Malformed(why)


def test_what_the_parser_did_not_like_is_said() -> None:
    outcome = run(b"no HTTP\r\n\r\n")
    assert isinstance(outcome, Malformed)
    assert outcome.why.startswith("sent no proper HTTP answer (illegal status line")


def test_an_interim_answer_and_a_beginning_are_too_long_together() -> None:
    connect = exchange()
    assert connect.feed(b"HTTP/1.1 103 Hints\r\nA: " + b"b" * 10_000 + b"\r\n\r\n") is None
    begun = b"HTTP/1.1 200 OK\r\nA: " + b"b" * (MOST_HEAD - 10_100)
    assert connect.feed(begun) is None
    assert connect.feed(b"b" * 1000) == Malformed("sent a head of more than 16384 bytes")


def test_repr_says_how_far_it_is() -> None:
    connect = exchange()
    assert repr(connect) == "<ConnectExchange open>"
    connect.feed(b"HTTP/1.1 403 no\r\nContent-Length: 2\r\n\r\n")
    assert repr(connect) == "<ConnectExchange refusing>"
    connect.feed(b"no")
    assert repr(connect) == "<ConnectExchange Refused(status=403, reason='no')>"
    with pytest.raises(RuntimeError, match=r"^the exchange is over$"):
        connect.feed(b"x")


def test_garbage_in_the_body_of_a_refusal_ends_it_at_once() -> None:
    """A proxy that does not close is not waited for."""
    outcome = exchange().feed(b"HTTP/1.1 403 no\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\nzz\r\n")
    assert isinstance(outcome, Refused)
    assert (outcome.status, outcome.body) == (403, b"x")


def test_a_refusal_is_over_with_the_last_byte_that_is_looked_at() -> None:
    connect = exchange()
    chunk = b"1;" + b"x" * 1000 + b"\r\ny\r\n"
    answer = (b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 200)[:MOST_ANSWER]
    assert connect.feed(answer[:-1]) is None
    assert isinstance(connect.feed(answer[-1:]), Refused)
