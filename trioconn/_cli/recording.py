"""What was heard while connections were made, as a document: the JSON of ``trace --json``, of which its screen is made.

Pure: the same events give the same document. Its shape is that of docs/trace.schema.json; `VERSION` counts up when a
reader of the old shape would misread the new one. All times are seconds, those within a dial from its start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from .. import CertificateError, ConnectError, FingerprintMismatchError, ProxyRefusedError, events
from .certificates import Decoder, days_left
from .hints import hints

Document: TypeAlias = dict[str, Any]

VERSION: Final = 1
EXIT_CODES: Final = {"resolve": 20, "connect": 30, "proxy": 40, "tls": 50, "pin": 51, "protocol": 60}
OTHER_EXIT_CODE: Final = 70


@dataclass(frozen=True, slots=True)
class Use:
    """One of the repeated connects: when it was asked for and over, and what it got."""

    began: float
    ended: float
    connection: int | None
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True)
class Recording:
    """All that a trace has seen.

    Attributes:
      url: as given.
      route: as text, without secrets.
      proxies: on the way, as text.
      proxy_reason: why there is one or none, where the environment decided.
      verified: whether certificates of the target are verified.
      authorities: whose: ``"system"``, or the file.
      pin: in hexadecimal, or None.
      made_at: the time of day, for what is left of certificates.
      heard: the events, in order.
      uses: the connects, in order.
      presented: certificates that were refused, by hop, as a look without trust found them.
    """

    url: str
    route: str
    proxies: Sequence[str] = ()
    proxy_reason: str | None = None
    verified: bool = True
    authorities: str = "system"
    pin: str | None = None
    made_at: datetime
    heard: list[events.Event] = field(default_factory=list[events.Event])
    uses: list[Use] = field(default_factory=list[Use])
    presented: dict[int, bytes] = field(default_factory=dict[int, bytes])


def document(recording: Recording, decode: Decoder) -> Document:
    """The document of `recording`, certificates read by `decode`."""
    readers: dict[int, _Dial] = {}
    for event in recording.heard:
        if isinstance(event, events.DialStarted):
            readers[event.dial] = _Dial(event, recording, decode)
        elif isinstance(event, events.DialEvent | events.Created) and event.dial in readers:
            readers[event.dial].hear(event)
    made: Document = {
        "schema": "trioconn trace",
        "version": VERSION,
        "made_at": recording.made_at.isoformat(),
        "target": {
            "url": recording.url,
            "route": recording.route,
            "proxies": list(recording.proxies),
            "proxy_reason": recording.proxy_reason,
        },
        "trust": {"verified": recording.verified, "authorities": recording.authorities, "pin": recording.pin},
        "dials": [reader.document() for reader in readers.values()],
        "uses": _uses(recording),
        "presented": [
            {"hop": hop, **_certificate(der, recording, decode)} for hop, der in sorted(recording.presented.items())
        ],
    }
    first_error = next((use.error for use in recording.uses if use.error is not None), None)
    made["exit_code"] = 0 if first_error is None else exit_code(first_error)
    made["hints"] = hints(made)
    return made


def exit_code(error: BaseException) -> int:
    """What the process tells of `error`: the stage that failed."""
    return EXIT_CODES.get(error.stage, OTHER_EXIT_CODE) if isinstance(error, ConnectError) else OTHER_EXIT_CODE


def failure(error: BaseException) -> Document:
    """An error as JSON."""
    told: Document = {"type": type(error).__name__, "message": str(error), "stage": None, "hop": None, "errno": None}
    if isinstance(error, ConnectError):
        told.update(stage=error.stage, hop=error.hop, errno=error.errno)
    causes = [error, error.__cause__]  # of a proxy's TLS, the certificate's error is the cause
    for cause in causes:
        if isinstance(cause, CertificateError):
            told["verify_code"] = cause.verify_code
        elif isinstance(cause, FingerprintMismatchError) and cause.got:
            told["got"] = cause.got.hex()
        elif isinstance(cause, ProxyRefusedError):
            told["status"] = cause.status
    return told


def _certificate(der: bytes, recording: Recording, decode: Decoder) -> Document:
    found = decode(der)
    if "not_after" in found:
        found["days_left"] = days_left(found["not_after"], recording.made_at)
    return found


class _Dial:
    """Gathers what was heard of one dial."""

    def __init__(self, event: events.DialStarted, recording: Recording, decode: Decoder) -> None:
        self._zero = event.at
        self._recording = recording
        self._decode = decode
        self._number = event.dial
        self._lookups: list[Document] = []
        self._attempts: dict[int, Document] = {}
        self._steps: list[Document] = []
        self._denied: list[str] = []
        self._cached = False
        self._connection: int | None = None
        self._session_reused = False
        self._ended: float | None = None
        self._outcome = "unfinished"
        self._error: Document | None = None

    def hear(self, event: events.Event) -> None:
        """Take in one event of this dial."""
        at = self._since(event)
        if isinstance(event, events.AttemptEvent):
            self._attempt(event, at)
        elif isinstance(event, events.TunnelStarted | events.TLSStarted):
            self._step_began(event, at)
        elif isinstance(event, events.TunnelFinished | events.TLSFinished):
            self._step_ended(event, at)
        elif isinstance(event, events.CacheHit):
            self._cached = True
        elif isinstance(event, events.LookupStarted):
            self._lookups.append({"host": event.host, "began": at, "ended": None, "addresses": [], "error": None})
        elif isinstance(event, events.LookupFinished):
            for lookup in self._lookups:
                if lookup["host"] == event.host and lookup["ended"] is None:
                    lookup.update(ended=at, addresses=list(event.addresses), error=event.error)
        elif isinstance(event, events.AttemptDenied):
            self._denied.append(event.address)
        elif isinstance(event, events.Created):
            self._connection, self._session_reused = event.connection, event.session_reused
            self._end("connected", at)
        elif isinstance(event, events.DialFailed):
            self._error = failure(event.error)
            self._end("timed out" if self._error["type"] == "ConnectTimeoutError" else "failed", at)
        elif isinstance(event, events.DialAborted):
            self._end("aborted", at)

    def document(self) -> Document:
        """What became of it."""
        return {
            "dial": self._number,
            "connection": self._connection,
            "outcome": self._outcome,
            "seconds": self._ended,
            "cached": self._cached,
            "lookups": self._lookups,
            "denied": self._denied,
            "attempts": [self._attempts[index] for index in sorted(self._attempts)],
            "steps": self._steps,
            "session_reused": self._session_reused,
            "error": self._error,
        }

    def _since(self, event: events.Event) -> float:
        return round(event.at - self._zero, 6)

    def _end(self, outcome: str, at: float) -> None:
        self._outcome, self._ended = outcome, at

    def _attempt(self, event: events.AttemptEvent, at: float) -> None:
        if isinstance(event, events.AttemptStarted):
            self._attempts[event.index] = {
                "index": event.index,
                "address": address_text(event.address),
                "family": _family(event.address),
                "began": at,
                "ended": None,
                "outcome": "unfinished",
                "progress": [],
                "error": None,
            }
            return
        attempt = self._attempts[event.index]
        if isinstance(event, events.AttemptProgressed):
            attempt["progress"].append({"stage": event.stage, "at": at})
            return
        attempt["ended"] = at
        if isinstance(event, events.AttemptFailed):
            attempt.update(outcome="failed", error=failure(event.error))
        else:
            attempt["outcome"] = "won" if isinstance(event, events.AttemptWon) else "lost"

    def _step_began(self, event: events.TunnelStarted | events.TLSStarted, at: float) -> None:
        step: Document = {
            "kind": "tls" if isinstance(event, events.TLSStarted) else "tunnel",
            "attempt": event.attempt,
            "hop": event.hop,
            "peer": self._peer(event.hop),
            "began": at,
            "ended": None,
            "error": None,
        }
        if isinstance(event, events.TunnelStarted):
            step.update(target=event.target, status=None)
        else:
            step.update(
                server_name=event.server_name, version=None, cipher=None, alpn=None, resumed=False, certificate=None
            )
        self._steps.append(step)

    def _step_ended(self, event: events.TunnelFinished | events.TLSFinished, at: float) -> None:
        kind = "tls" if isinstance(event, events.TLSFinished) else "tunnel"
        for step in self._steps:
            if (step["kind"], step["attempt"], step["hop"]) == (kind, event.attempt, event.hop):
                step.update(ended=at, error=None if event.error is None else failure(event.error))
                if isinstance(event, events.TunnelFinished):
                    step["status"] = event.status
                    continue
                step.update(version=event.version, cipher=event.cipher, alpn=event.alpn, resumed=event.resumed)
                if event.certificate:
                    step["certificate"] = _certificate(event.certificate, self._recording, self._decode)

    def _peer(self, hop: int) -> str:
        proxies = self._recording.proxies
        return proxies[hop] if 0 <= hop < len(proxies) else "the target"


def _uses(recording: Recording) -> list[Document]:
    """Each connect, and why its connection was reused or new."""
    uses: list[Document] = []
    reused = _by_number(event for event in recording.heard if isinstance(event, events.Reused))
    closings = [event for event in recording.heard if isinstance(event, events.Closed)]
    before: Use | None = None
    for number, use in enumerate(recording.uses, 1):
        why = "the first one"
        idle = None
        is_reused = False
        if use.error is not None:
            why = f"failed: {type(use.error).__name__}"
        elif use.connection in reused and (lease := _lease_of(reused[use.connection], use)) is not None:
            is_reused, idle = True, round(lease.idle, 6)
            why = f"#{use.connection} was idle"
        elif before is not None:
            since = before.began
            ended = [event for event in closings if since <= event.at <= use.ended]
            why = (
                "; ".join(f"#{event.connection} was closed: {event.reason}" for event in ended)
                if ended
                else "none was idle"
            )
        uses.append(
            {
                "use": number,
                "connection": use.connection,
                "reused": is_reused,
                "idle": idle,
                "seconds": round(use.ended - use.began, 6),
                "why": why,
                "error": None if use.error is None else failure(use.error),
            }
        )
        before = use
    return uses


def _by_number(heard: Iterable[events.Reused]) -> Mapping[int | None, list[events.Reused]]:
    found: dict[int | None, list[events.Reused]] = {}
    for event in heard:
        found.setdefault(event.connection, []).append(event)
    return found


def _lease_of(leases: list[events.Reused], use: Use) -> events.Reused | None:
    return next((lease for lease in leases if use.began <= lease.at <= use.ended), None)


def address_text(address: Any) -> str:
    """A socket address, or a path, as text."""
    return repr(address) if isinstance(address, str) else str(address[0])


def _family(address: Any) -> str:
    try:
        return f"IPv{ip_address(address_text(address).partition('%')[0]).version}"
    except ValueError:
        return "path"
