"""The TLS step: a stream in, a verified `TLSStream` out.

The handshake is finished, the certificate verified and the pin checked before anybody gets the stream. Whatever goes
wrong, cancellation included, the stream is closed before the error leaves: nothing may be sent on it, and the peer sees
its end before the caller sees the error (urllib3/urllib3#2571, encode/httpcore#443).

Streams end without close_notify often enough on the web that they are made ``https_compatible``: where an end of data
has a meaning, the protocol above has to tell (RFC 9112 section 8). They say close_notify themselves nevertheless.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from .. import events
from .._errors import CertificateError, FingerprintMismatchError, InvalidTargetError, TLSError
from .._route import TARGET, Fingerprint, TLSStep
from .foreign import close_now
from .tls import TLSStream
from .tls_context import context_for
from .tls_engine import is_eof

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .tls_sessions import SessionStore

# OpenSSL's X509_V_ERR_… numbers, which are part of its interface: what they mean, and what can be done about them.
# {ssl} and {name} are the options for that, which a proxy has of its own.
_NOT_TRUSTED: Final = "its authority is not trusted here"
_TRUST: Final = "pass a context that trusts it, ssl.create_default_context(cafile=…), as {ssl}"
_TRUST_OR_CHAIN: Final = _TRUST + "; or the server has to send its whole chain"
_MEANINGS: Final = {
    9: ("it is not valid yet", "check this machine's clock"),
    10: ("it has expired", "have it renewed, or check this machine's clock"),
    18: ("it vouches for itself", "pin it, Fingerprint(…) as {ssl}, or " + _TRUST),
    19: (_NOT_TRUSTED, _TRUST),
    20: (_NOT_TRUSTED, _TRUST_OR_CHAIN),
    21: (_NOT_TRUSTED, _TRUST_OR_CHAIN),
    23: ("it was revoked", "do not connect"),
    62: ("it is not for the name {asked!r}", "if this is the right server, pass the name that it is for as {name}"),
    64: ("it is not for the address {asked}", "if this is the right server, pass the name that it is for as {name}"),
}
_UNTRUSTED: Final = (18, 19, 20, 21)
_OPTIONS: Final = {"ssl": "ssl=", "name": "server_hostname="}
_PROXY_OPTIONS: Final = {"ssl": "ssl= of that Proxy", "name": "server_hostname= of that Proxy"}

# OpenSSL's reasons for failures of other kinds, and what they mean to a person.
_NOT_TLS: Final = "the peer does not speak TLS on this port"
_NO_COMMON_VERSION: Final = "the peer and this context have no TLS version in common"
_REASONS: Final = {
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "UNKNOWN_PROTOCOL": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _NO_COMMON_VERSION,
    "TLSV1_ALERT_PROTOCOL_VERSION": _NO_COMMON_VERSION,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "nothing in common with this context, or a client certificate is wanted",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer wants a client certificate: load one into the context",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the authority of our client certificate",
    "TLSV1_UNRECOGNIZED_NAME": "the peer does not know the server name {asked!r}",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "the peer speaks none of the ALPN protocols",
    "NO_APPLICATION_PROTOCOL": "the peer speaks none of the ALPN protocols",
    "EXCESSIVE_MESSAGE_SIZE": "the peer sent more than a handshake may have: too many or too long certificates",
    "TOO_MANY_WARN_ALERTS": "the peer sent one warning after the other and no handshake",
}


async def handshake(
    stream: trio.abc.Stream,
    step: TLSStep,
    *,
    sessions: SessionStore | None,
    key: Hashable,
    report: events.Report | None,
    host_shown: str,
) -> TLSStream[trio.abc.Stream]:
    """Make `step` on `stream`, which it owns from the call on: it is in the result, or closed.

    Args:
      stream: connected, and nothing sent or received that concerns this step.
      step: with whom, as whom, how far trusted.
      sessions: where sessions are kept, or None to resume none.
      key: under which they are kept: all that this hop's trust depends on.
      report: gets `events.TLSStarted` and `events.TLSFinished`, or None.
      host_shown: the peer, for messages.

    Raises:
      CertificateError: the certificate was not accepted.
      FingerprintMismatchError: it is not the pinned one.
      TLSError: the handshake failed otherwise.
      InvalidTargetError: the caller's context was changed since the route was made, or checks names and has none.
    """
    if step.pin is not None:
        sessions = None
    try:
        if report is not None:
            report(events.TLSStarted, hop=step.hop, server_name=step.server_name)
        tls = await _shake(stream, step, sessions, key, host_shown)
        _check_pin(tls, step, host_shown)
        if sessions is not None:
            sessions.admit(key, tls)
        if report is not None:
            _report_success(tls, step, report)
    except BaseException as exc:
        await close_now(stream)  # noqa: ASYNC102 - waits for nobody
        if isinstance(exc, Exception):
            if sessions is not None:
                sessions.drop(key)
            if report is not None:
                report(events.TLSFinished, hop=step.hop, error=exc)
        raise
    return tls


def _report_success(tls: TLSStream[trio.abc.Stream], step: TLSStep, report: events.Report) -> None:
    cipher = tls.cipher()
    report(
        events.TLSFinished,
        hop=step.hop,
        version=tls.version(),
        cipher=None if cipher is None else cipher[0],
        alpn=tls.selected_alpn_protocol(),
        resumed=tls.session_reused,
        certificate=tls.getpeercert(binary_form=True),
    )


async def _shake(
    stream: trio.abc.Stream, step: TLSStep, sessions: SessionStore | None, key: Hashable, host_shown: str
) -> TLSStream[trio.abc.Stream]:
    """The handshake itself."""
    try:
        context = await context_for(step)
    except OSError as exc:
        raise TLSError(
            f"no TLS context could be made for {host_shown}: {exc} (are SSLKEYLOGFILE and SSL_CERT_FILE right?)",
            errno=exc.errno,
            stage="tls",
            hop=step.hop,
        ) from exc
    if not step.trust.is_current():
        raise InvalidTargetError(
            f"the SSLContext for {host_shown} was changed after its route was made: make one again, connector.route()"
        )
    if context.check_hostname and step.server_name is None:
        raise InvalidTargetError(f"the SSLContext for {host_shown} checks host names: pass server_hostname")
    tls = TLSStream(
        stream,
        context,
        server_hostname=step.server_name,
        https_compatible=True,
        session=None if sessions is None else sessions.offer(key, context),
    )
    try:
        await tls.do_handshake()
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise _told(exc, step, host_shown) from (exc.__cause__ or exc)
    return tls


def _check_pin(tls: TLSStream[trio.abc.Stream], step: TLSStep, host_shown: str) -> None:
    if step.pin is None:
        return
    pin = Fingerprint(step.pin)
    certificate = tls.getpeercert(binary_form=True) or b""
    # A resumed session would show the certificate that it remembers. None was offered; fail closed all the same.
    if not pin.matches(certificate) or tls.session_reused:
        raise _mismatch(pin, certificate, step, host_shown)


def _mismatch(pin: Fingerprint, certificate: bytes, step: TLSStep, host_shown: str) -> FingerprintMismatchError:
    got = pin.digest_of(certificate) if certificate else b""
    error = FingerprintMismatchError(
        f"the certificate of {host_shown} is not the pinned one: "
        f"expected SHA-{len(pin.digest) * 8} {pin.digest.hex()}, got {got.hex() or 'none'} "
        "(if it was renewed, pin the new one; if not, somebody else has answered)",
        stage="pin",
        hop=step.hop,
    )
    error.expected = pin.digest
    error.got = got
    return error


def _told(exc: Exception, step: TLSStep, host_shown: str) -> TLSError:
    """What went wrong, in words that say what was tried, what was found and what to do."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _not_accepted(cause, step, host_shown)
    errno = None
    if isinstance(cause, ssl.SSLZeroReturnError) or is_eof(cause):
        what = "the peer closed the connection"
    elif isinstance(cause, ssl.SSLError):
        reason = cause.reason or ""
        what = _REASONS.get(reason, "the peer refused" if "ALERT" in reason else "it is malformed")
        what = f"{what.format(asked=step.server_name)} ({reason or cause})"
    elif isinstance(cause, OSError):
        errno = cause.errno
        what = f"the connection broke: {cause}"
    else:
        what = str(exc) or "the connection broke"
    return TLSError(f"the TLS handshake with {host_shown} failed: {what}", errno=errno, stage="tls", hop=step.hop)


def _not_accepted(cause: ssl.SSLCertVerificationError, step: TLSStep, host_shown: str) -> CertificateError:
    # The certificate itself cannot be shown: OpenSSL keeps none that it did not accept.
    what, advice = _MEANINGS.get(cause.verify_code, ("", ""))
    what = what.format(asked=step.server_name) or cause.verify_message
    if cause.verify_code in _UNTRUSTED:  # of the others OpenSSL says no more than we do
        what = f"{what} ({cause.verify_message})"
    message = f"the certificate of {host_shown} was not accepted: {what}"
    if advice:
        message += "; " + advice.format(**(_OPTIONS if step.hop == TARGET else _PROXY_OPTIONS))
    error = CertificateError(message, stage="tls", hop=step.hop)
    error.verify_code = cause.verify_code
    error.verify_message = cause.verify_message
    return error
