"""Events of traces, written down by hand: what `trioconn._cli.recording` makes documents of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import trioconn
from trioconn import events
from trioconn._cli.recording import Recording, Use

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "trace.schema.json").read_text(encoding="utf-8"))
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
V4, V6 = ("93.184.216.34", 443), ("2606:2800:220:1:248:1893:25c8:1946", 443, 0, 0)
GOOD, OTHER, PROXY = b"good", b"other", b"proxy"
CERTIFICATES: dict[bytes, dict[str, Any]] = {
    GOOD: {
        "names": ["example.test", "www.example.test"],
        "subject": "CN=example.test",
        "issuer": "CN=R12,O=Good Authority,C=NL",
        "not_before": "2026-10-01T00:00:00+00:00",
        "not_after": "2026-12-30T00:00:00+00:00",
    },
    PROXY: {
        "names": ["outer.test"],
        "subject": "",
        "issuer": "CN=Internal",
        "not_before": "2026-11-19T00:00:00+00:00",
        "not_after": "2026-11-26T00:00:00+00:00",
    },
    OTHER: {
        "names": ["elsewhere.test"],
        "subject": "CN=elsewhere.test",
        "issuer": "CN=elsewhere.test",
        "not_before": "2025-10-01T00:00:00+00:00",
        "not_after": "2026-11-01T00:00:00+00:00",
    },
}


def decode(der: bytes) -> dict[str, Any]:
    return {"sha256": sha256(der).hexdigest(), **CERTIFICATES[der]}


class Tape:
    """Writes events: ``tape(seconds, EventClass, field=…)``. The clock of the run began somewhere else."""

    ZERO = 1000.0

    def __init__(self, url: str, **options: Any) -> None:
        self.connector = trioconn.TCPConnector(**options)
        self.route = self.connector.route(url)
        self.recording = Recording(
            url=url,
            route=str(self.route),
            proxies=[str(proxy) for proxy in self.route.proxies],
            made_at=NOW,
        )
        self.dial = 1
        self(0.0, events.DialStarted)

    def __call__(self, at: float, kind: type[events.Event], **fields: Any) -> None:
        if issubclass(kind, events.DialEvent):
            fields["dial"] = self.dial
        self.recording.heard.append(kind(at=self.ZERO + at, route=self.route, **fields))

    def looked_up(self, *addresses: str, host: str = "example.test") -> None:
        self(0.0, events.CacheMiss, host=host)
        self(0.0, events.LookupStarted, host=host)
        self(0.004, events.LookupFinished, host=host, addresses=addresses)

    def created(self, at: float) -> None:
        self.recording.heard.append(
            events.Created(at=self.ZERO + at, route=self.route, connection=1, dial=1, seconds=at)
        )
        self.recording.uses.append(Use(self.ZERO, self.ZERO + at, 1))

    def certificate_refused(self, error: trioconn.CertificateError) -> None:
        """The one attempt came as far as the target's certificate."""
        self(0.005, events.AttemptStarted, index=0, address=V4)
        self(0.036, events.AttemptProgressed, index=0, stage="connect")
        self(0.036, events.TLSStarted, hop=-1, server_name="example.test")
        self(0.070, events.TLSFinished, hop=-1, error=error)
        self(0.070, events.AttemptFailed, index=0, error=error)
        self.failed(0.071, error)

    def failed(self, at: float, error: trioconn.ConnectError) -> None:
        self(at, events.DialFailed, error=error, stage=error.stage)
        self.recording.uses.append(Use(self.ZERO, self.ZERO + at, None, error))


def shaken(certificate: bytes = GOOD, **more: Any) -> dict[str, Any]:
    tls = {"hop": -1, "version": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "alpn": "h2"}
    return {**tls, "certificate": certificate, **more}
