"""What `trace` says of rarer things: hints for each kind of failure, and the rows of odd events."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

import trioconn
from trioconn import events
from trioconn._cli import recording
from trioconn._cli.certificates import Decoder
from trioconn._cli.recording import Use
from trioconn._cli.render import plain, screen

from .tapes import GOOD, OTHER, SCHEMA, V4, Tape, decode, shaken


def told(tape: Tape, decoder: Decoder = decode) -> tuple[dict[str, Any], str]:
    """The document, which is valid, and its screen."""
    made = recording.document(tape.recording, decoder)
    jsonschema.validate(made, SCHEMA)
    return made, plain(screen(made))


def refused(code: int, presented: bytes | None) -> Tape:
    """The target's certificate is refused with OpenSSL's `code`."""
    tape = Tape("https://example.test")
    error = trioconn.CertificateError("the certificate was not accepted", stage="tls")
    error.verify_code = code
    tape.certificate_refused(error)
    if presented is not None:
        tape.recording.presented[-1] = presented
    return tape


@pytest.mark.parametrize(
    ("code", "presented", "hint"),
    [
        (10, OTHER, "it ended 20 days ago: renew it"),
        (9, GOOD, None),  # not valid yet: nothing to do but to wait, or to set the clock
        (10, None, None),
        (62, OTHER, "it is for elsewhere.test: use one of these names, or give the server the right certificate"),
        (62, None, None),
        (20, None, "if you know the authority: --cacert FILE (after comparing it with the server's)"),
        (23, OTHER, None),  # revoked: that is for the server's owner
    ],
    ids=["expired", "not yet valid", "expired, unseen", "name", "name, unseen", "issuer, unseen", "revoked"],
)
def test_a_hint_says_no_more_about_a_refused_certificate_than_is_known(
    code: int, presented: bytes | None, hint: str | None
) -> None:
    made, shown = told(refused(code, presented))
    assert made["hints"] == ([] if hint is None else [hint])
    assert "certificate refused" in shown
    assert ("its certificate, as a look" in shown) == (presented is not None)


@pytest.mark.parametrize(
    ("error", "row", "hint"),
    [
        (trioconn.ConnectError("no: Network is unreachable", stage="connect"), "unreachable", None),
        (trioconn.ConnectError("no: Connection refused", stage="connect"), "refused", "is the server running"),
        (trioconn.TLSError("the handshake failed: no shared cipher", stage="tls"), "failed at tls", None),
        (trioconn.FingerprintMismatchError("not it", stage="pin"), "not the pinned one", "take the new SHA-256"),
    ],
    ids=["unreachable", "refused", "handshake", "pin"],
)
def test_an_attempt_that_failed_has_a_few_words_and_perhaps_a_hint(
    error: trioconn.ConnectError, row: str, hint: str | None
) -> None:
    tape = Tape("https://example.test")
    tape(0.005, events.AttemptStarted, index=0, address=V4)
    tape(0.030, events.AttemptFailed, index=0, error=error)
    tape.failed(0.031, error)
    made, shown = told(tape)
    assert shown.splitlines()[2].endswith(f"  {row}")
    assert len(made["hints"]) == (hint is not None)
    assert hint is None or hint in made["hints"][0]


def test_an_address_that_never_answered_is_named() -> None:
    tape = Tape("https://example.test")
    tape(0.005, events.AttemptStarted, index=0, address=V4)
    tape(3.0, events.AttemptLost, index=0)
    tape.failed(3.0, trioconn.ConnectTimeoutError("no connection within 3 s", stage="connect"))
    made, shown = told(tape)
    assert made["hints"] == [f"no answer at all from {V4[0]}: a firewall that drops, or a route that leads nowhere"]
    assert "3000 ms, then cut off by the timeout" in shown


def test_a_dead_address_of_the_winners_own_family_is_not_blamed_on_ipv6() -> None:
    tape = Tape("https://example.test")
    tape(0.0, events.AttemptStarted, index=0, address=("192.0.2.1", 443))
    tape(0.25, events.AttemptStarted, index=1, address=V4)
    tape(0.28, events.AttemptWon, index=1)
    tape(0.28, events.AttemptLost, index=0)
    tape.created(0.28)
    assert told(tape)[0]["hints"] == [
        "192.0.2.1 did not answer in time: 250 ms lost on the first connection to this host"
    ]


@pytest.mark.parametrize(
    ("authorities", "words"),
    [("none", f"the pin {'ab' * 32}\n"), ("ca.pem", f"the pin {'ab' * 32}, and ca.pem\n")],
)
def test_what_a_pin_is_trusted_with_is_shown(authorities: str, words: str) -> None:
    tape = Tape("https://example.test")
    tape.created(0.1)
    tape.recording.pin, tape.recording.authorities = "ab" * 32, authorities
    assert f"\ntrust     {words}" in told(tape)[1]


def test_a_certificate_that_cannot_be_read_is_shown_by_its_digest() -> None:
    tape = Tape("https://example.test")
    tape(0.0, events.TLSStarted, hop=-1, server_name="example.test")
    tape(0.02, events.TLSFinished, **shaken(b"unread"))
    tape.created(0.02)
    made, shown = told(tape, lambda der: {"sha256": "ab" * 32, "undecoded": "it is malformed: ValueError"})
    assert made["hints"] == []
    rows = shown.splitlines()
    where = next(number for number, row in enumerate(rows) if row.startswith("tls "))
    assert rows[where + 1 :] == [
        f"  sha256  {'ab' * 32}",
        "          it is malformed: ValueError",
        "total     20 ms, connected",
    ]


def test_each_name_that_is_looked_up_gets_its_own_answer() -> None:
    """With socks5 two are: the proxy's, and then the target's, whose answer does not come here."""
    tape = Tape("https://example.test", proxy="socks5://proxy.test:1080")
    tape(0.0, events.LookupStarted, host="proxy.test")
    tape(0.004, events.LookupFinished, host="proxy.test", addresses=("10.0.0.7",))
    tape(0.005, events.AttemptStarted, index=0, address=("10.0.0.7", 1080))
    tape(0.006, events.AttemptProgressed, index=0, stage="connect")
    tape(0.006, events.LookupStarted, host="example.test")
    tape(0.007, events.LookupStarted, host="other.test")
    tape(0.017, events.LookupFinished, host="other.test", addresses=("192.0.2.1", "192.0.2.2"))
    tape(1.0, events.LookupStarted, host="other.test")
    tape(1.5, events.LookupFinished, host="other.test", error="the server failed")
    tape(2.0, events.AttemptLost, index=0)
    tape.failed(2.0, trioconn.ConnectTimeoutError("no connection within 2 s", stage="resolve"))
    made, shown = told(tape)
    assert [(one["host"], one["ended"]) for one in made["dials"][0]["lookups"]] == [
        ("proxy.test", 0.004),
        ("example.test", None),
        ("other.test", 0.017),
        ("other.test", 1.5),
    ]
    assert [row.split(maxsplit=2)[1:] for row in shown.splitlines() if row.startswith("dns ")] == [
        ["proxy.test", "1 address, 4.0 ms"],
        ["example.test", "no answer"],
        ["other.test", "2 addresses, 10 ms"],
        ["other.test", "nothing found, 500 ms"],
    ]


def test_an_address_that_the_policy_denies_is_shown() -> None:
    tape = Tape("https://example.test")
    tape(0.001, events.AttemptDenied, address="10.0.0.1")
    tape(0.001, events.AttemptDenied, address="10.0.0.2")
    tape.failed(0.002, trioconn.AddressDeniedError("denied", stage="connect"))
    made, shown = told(tape)
    assert made["dials"][0]["denied"] == ["10.0.0.1", "10.0.0.2"]
    assert "\ndenied    by the address policy: 10.0.0.1, 10.0.0.2\n" in shown


def test_of_a_long_path_the_end_is_shown() -> None:
    tape = Tape("https://example.test")
    path = "/var/lib/a/folder/of/many/levels/and/names/the.socket"
    tape(0.0, events.AttemptStarted, index=0, address=path)
    tape(0.001, events.AttemptWon, index=0)
    tape.created(0.001)
    made, shown = told(tape)
    assert made["dials"][0]["attempts"][0]["address"] == repr(path)
    [row] = [row for row in shown.splitlines() if "won" in row]
    assert row.split()[0] == "…" + repr(path)[-38:]


def test_an_attempt_cut_off_between_two_stages_was_in_the_last_one() -> None:
    tape = Tape("https://example.test")
    tape(0.0, events.AttemptStarted, index=0, address=V4)
    tape(0.01, events.AttemptProgressed, index=0, stage="connect")
    tape(0.02, events.AttemptLost, index=0)
    tape(0.02, events.DialAborted)
    made, shown = told(tape)
    assert made["dials"][0]["outcome"] == "aborted"
    assert "░ connect\n" in shown and "█" not in shown and "no answer" in shown
    assert shown.endswith("\ntotal     20 ms, then given up\n")


def test_a_dial_of_which_the_end_is_not_known_has_no_total() -> None:
    tape = Tape("https://example.test")
    tape(0.0, events.AttemptStarted, index=0, address=V4)
    made, shown = told(tape)
    assert (made["dials"][0]["outcome"], made["dials"][0]["seconds"]) == ("unfinished", None)
    assert "not finished" in shown and "total" not in shown


def test_an_error_that_is_none_of_ours_has_no_stage() -> None:
    tape = Tape("https://example.test")
    error = RuntimeError("something else")
    tape(0.5, events.DialFailed, error=error, stage="other")
    tape.recording.uses.append(Use(tape.ZERO, tape.ZERO + 0.5, None, error))
    made, shown = told(tape)
    assert made["exit_code"] == recording.OTHER_EXIT_CODE == 70
    assert "\nfailed    RuntimeError\n          something else\n" in shown
