"""Rows of the security cases that cannot happen here, each with the reason. Every other row has a test."""

from __future__ import annotations

NOT_APPLICABLE = {
    32: "there is no Digest login: proxies get Basic, sent once with the first request, so there is no nonce to replay",
    95: "the size of a peer's RSA key is OpenSSL's matter: Python can neither see nor cap it before the one step that "
    "uses it, which no deadline interrupts; `connect_timeout` ends the attempt right behind that step",
}
