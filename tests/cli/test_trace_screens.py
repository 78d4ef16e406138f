"""What `trace` shows, held by golden files: recorded events in, a screen and a document out, nothing else.

Write them anew with ``TRIOCONN_GOLDEN=write``, and read what came out before you commit it.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import trioconn
from trioconn import events
from trioconn._cli.recording import Use, document
from trioconn._cli.render import WIDTH, plain, screen

from .tapes import NOW, OTHER, PROXY, SCHEMA, V4, V6, Tape, decode, shaken

GOLDEN = Path(__file__).parent / "golden"


def dead_ipv6() -> Tape:
    tape = Tape("https://example.test")
    tape.looked_up(V6[0], V4[0])
    tape(0.005, events.AttemptStarted, index=0, address=V6)
    tape(0.255, events.AttemptStarted, index=1, address=V4)
    tape(0.286, events.AttemptProgressed, index=1, stage="connect")
    tape(0.286, events.TLSStarted, hop=-1, server_name="example.test", attempt=1)
    tape(0.351, events.TLSFinished, attempt=1, **shaken())
    tape(0.351, events.AttemptProgressed, index=1, stage="tls")
    tape(0.351, events.AttemptLost, index=0)
    tape(0.351, events.AttemptWon, index=1)
    tape.created(0.352)
    return tape


def mute_tls_server() -> Tape:
    tape = Tape("https://example.test")
    tape.looked_up(V4[0])
    tape(0.005, events.AttemptStarted, index=0, address=V4)
    tape(0.036, events.AttemptProgressed, index=0, stage="connect")
    tape(0.036, events.TLSStarted, hop=-1, server_name="example.test")
    tape(10.0, events.AttemptLost, index=0)
    tape.failed(
        10.0,
        trioconn.ConnectTimeoutError(
            "https://example.test:443: no connection within connect_timeout=10 s; it had come to the stage 'tls'",
            stage="tls",
        ),
    )
    return tape


def wrong_certificate() -> Tape:
    tape = Tape("https://example.test")
    tape.looked_up(V4[0])
    error = trioconn.CertificateError(
        "the certificate of https://example.test:443 was not accepted: it is not for the name 'example.test'",
        stage="tls",
    )
    error.verify_code = 62
    tape.certificate_refused(error)
    tape.recording.presented[-1] = OTHER
    return tape


def unknown_issuer() -> Tape:
    tape = wrong_certificate()
    for event in tape.recording.heard:
        if isinstance(error := getattr(event, "error", None), trioconn.CertificateError):
            error.verify_code = 18
    return tape


def refusing_proxy() -> Tape:
    tape = Tape("https://example.test", proxy="http://user:secret@proxy.test:3128")
    tape.recording.proxy_reason = "https_proxy names it for https."
    tape.looked_up("10.0.0.7", host="proxy.test")
    error = trioconn.ProxyRefusedError(
        "the proxy (hop 0), asked to CONNECT to example.test:443, refused: 403 Forbidden", stage="proxy", hop=0
    )
    error.status = 403
    tape(0.005, events.AttemptStarted, index=0, address=("10.0.0.7", 3128))
    tape(0.007, events.AttemptProgressed, index=0, stage="connect")
    tape(0.007, events.TunnelStarted, hop=0, target="example.test:443")
    tape(0.019, events.TunnelFinished, hop=0, status=403, error=error)
    tape(0.019, events.AttemptFailed, index=0, error=error)
    tape.failed(0.019, error)
    return tape


def working_chain() -> Tape:
    tape = Tape("https://example.test", proxy=["https://outer.test:8443", "socks5h://inner.test:1080"])
    tape.looked_up("10.0.0.8", host="outer.test")
    tape(0.005, events.AttemptStarted, index=0, address=("10.0.0.8", 8443))
    tape(0.015, events.AttemptProgressed, index=0, stage="connect")
    tape(0.015, events.TLSStarted, hop=0, server_name="outer.test")
    tape(0.040, events.TLSFinished, **shaken(PROXY, hop=0, alpn=None, version="TLSv1.2", cipher="ECDHE-RSA-AES128"))
    tape(0.040, events.AttemptProgressed, index=0, stage="tls")
    tape(0.040, events.TunnelStarted, hop=0, target="inner.test:1080")
    tape(0.055, events.TunnelFinished, hop=0, status=200)
    tape(0.055, events.AttemptProgressed, index=0, stage="proxy")
    tape(0.055, events.TunnelStarted, hop=1, target="example.test:443")
    tape(0.090, events.TunnelFinished, hop=1, status=0)
    tape(0.090, events.AttemptProgressed, index=0, stage="proxy")
    tape(0.090, events.TLSStarted, hop=-1, server_name="example.test")
    tape(0.150, events.TLSFinished, **shaken(resumed=True))
    tape(0.150, events.AttemptProgressed, index=0, stage="tls")
    tape(0.150, events.AttemptWon, index=0)
    tape.created(0.150)
    return tape


def repeated() -> Tape:
    """Three connects: made, reused, and made again because the server had closed."""
    tape = dead_ipv6()
    recording, route = tape.recording, tape.route
    recording.heard += [
        events.Released(at=1000.36, route=route, connection=1, leased=0.01),
        events.Reused(at=1001.0, route=route, connection=1, uses=2, idle=0.64),
        events.Released(at=1001.1, route=route, connection=1, leased=0.1),
        events.Closed(at=1006.1, route=route, connection=1, reason="server closed", age=5.7),
    ]
    recording.uses += [Use(1001.0, 1001.001, 1), Use(1010.0, 1010.05, 2)]
    return tape


def nothing_found() -> Tape:
    tape = Tape("https://exmaple.test")
    tape(0.0, events.CacheMiss, host="exmaple.test")
    tape(0.0, events.LookupStarted, host="exmaple.test")
    error = trioconn.ResolveError("cannot resolve exmaple.test: Name or service not known", stage="resolve")
    tape(0.021, events.LookupFinished, host="exmaple.test", error=str(error))
    tape.failed(0.021, error)
    return tape


def the_second_fails() -> Tape:
    """The dial that is shown is the one that went wrong."""
    tape = dead_ipv6()
    tape.dial = 2
    error = trioconn.ConnectError("cannot connect to example.test at 93.184.216.34: Connection refused", errno=111)
    tape(5.0, events.DialStarted)
    tape(5.0, events.CacheHit, host="example.test")
    tape(5.0, events.AttemptStarted, index=0, address=V4)
    tape(5.001, events.AttemptFailed, index=0, error=error)
    tape(5.001, events.DialFailed, error=error, stage=error.stage)
    tape.recording.uses.append(Use(1005.0, 1005.001, None, error))
    return tape


SCENES: list[Callable[[], Tape]] = [
    dead_ipv6, mute_tls_server, wrong_certificate, unknown_issuer, refusing_proxy, working_chain, repeated,
    nothing_found, the_second_fails,
]  # fmt: skip


def check(path: Path, text: str) -> None:
    if os.environ.get("TRIOCONN_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_screen_and_document_are_those_of_the_golden_files(scene: Callable[[], Tape]) -> None:
    made = document(scene().recording, decode)
    jsonschema.validate(made, SCHEMA)
    check(GOLDEN / f"{scene.__name__}.json", json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    shown = plain(screen(made))
    assert max(map(len, shown.splitlines())) <= WIDTH + 10
    assert "secret" not in shown + json.dumps(made)
    check(GOLDEN / f"{scene.__name__}.txt", shown)


def test_the_schema_is_one_and_refuses_what_it_does_not_know() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    made = document(working_chain().recording, decode)
    for wrong in ({**made, "version": 2}, {**made, "more": 1}, {**made, "exit_code": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
    made["dials"][0]["steps"][0]["unheard"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, SCHEMA)


def test_the_same_events_give_the_same_screen() -> None:
    recording = dead_ipv6().recording
    assert screen(document(recording, decode)) == screen(document(recording, decode))


def test_certificates_are_read_and_made_fit_for_a_terminal(server_ssl: Callable[..., ssl.SSLContext], ca: Any) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    from trioconn._cli import certificates

    leaf = ca.issue_cert("a.test", "127.0.0.1", common_name="evil\x1b[31m")
    der = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).public_bytes(
        __import__("cryptography.hazmat.primitives.serialization", fromlist=["Encoding"]).Encoding.DER
    )
    found = certificates.decode(der)
    assert found["sha256"] == sha256(der).hexdigest()
    assert found["names"] == ["a.test", "127.0.0.1"]
    assert "\x1b" not in found["subject"] and "evil" in found["subject"]
    assert trioconn.Fingerprint(found["sha256"]).matches(der)
    assert "malformed" in certificates.decode(b"no certificate")["undecoded"]


def test_a_certificate_without_names_of_its_own_is_well_formed() -> None:
    """As old ones are: the name stands in the subject, where nobody looks any more."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    from trioconn._cli import certificates

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old.test")])
    maker = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    made = maker.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=2, hours=1)).sign(key, SHA256())
    found = certificates.decode(made.public_bytes(Encoding.DER))
    assert (found["subject"], found["issuer"], found["names"]) == ("CN=old.test", "CN=old.test", [])
    assert certificates.days_left(found["not_after"], NOW) == 2
    assert "undecoded" not in found


def test_without_the_library_there_is_still_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from trioconn._cli import certificates

    monkeypatch.setitem(sys.modules, "cryptography", None)
    found = certificates.decode(b"x")
    assert set(found) == {"sha256", "undecoded"}
