"""What a person wants to know of a certificate.

The standard library decodes only certificates that it has verified, and the interesting ones are the others. So this is
done by `cryptography`, where it is installed (trustme brings it, hence the extra ``demo``); without it there is the
digest, which is all that a pin needs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, TypeAlias

from .._errors import shown

Decoder: TypeAlias = Callable[[bytes], dict[str, Any]]
"""A certificate (DER) as JSON: ``sha256``, and if it can be decoded ``names subject issuer not_before not_after``."""

_MOST_NAMES = 20
_LONGEST_NAME = 200


def decode(der: bytes) -> dict[str, Any]:
    """`der` as far as it can be read here. Never raises: what a peer sends may be anything."""
    found: dict[str, Any] = {"sha256": sha256(der).hexdigest()}
    try:
        from cryptography import x509
    except ImportError:
        found["undecoded"] = 'to see more of it: pip install "trioconn[demo]"'
        return found
    try:
        certificate = x509.load_der_x509_certificate(der)
        found["subject"] = _text(certificate.subject.rfc4514_string())
        found["issuer"] = _text(certificate.issuer.rfc4514_string())
        found["not_before"] = certificate.not_valid_before_utc.isoformat()
        found["not_after"] = certificate.not_valid_after_utc.isoformat()
        found["names"] = []
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found["names"] = [_text(name) for name in names.get_values_for_type(x509.DNSName)][:_MOST_NAMES]
        found["names"] += [str(address) for address in names.get_values_for_type(x509.IPAddress)][:_MOST_NAMES]
    except x509.ExtensionNotFound:
        pass
    except Exception as error:  # a malformed certificate is a finding, and not ours to crash on
        found["undecoded"] = f"it is malformed: {type(error).__name__}"
    return found


def _text(value: str) -> str:
    """What stands in a certificate, fit for a terminal: anybody can write anything there."""
    return value if value.isprintable() and len(value) <= _LONGEST_NAME else shown(value)


def days_left(not_after: str, now: datetime) -> int:
    """Whole days until then; negative ones have passed."""
    return (datetime.fromisoformat(not_after).astimezone(UTC) - now).days
