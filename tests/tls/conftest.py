"""Authorities and certificates for the TLS tests: one throw-away CA that is trusted, one that is not."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import pytest
import trustme


@dataclass
class Authority:
    """A CA, its server contexts and the client contexts that trust it."""

    ca: trustme.CA

    def server(self, *names: str, version: ssl.TLSVersion | None = None, **cert_options: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        options = {"key_type": trustme.KeyType.ECDSA, **cert_options}
        self.ca.issue_cert(*(names or ("a.test",)), **options).configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority(trustme.CA(key_type=trustme.KeyType.ECDSA))


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """A CA that nobody trusts."""
    return Authority(trustme.CA(key_type=trustme.KeyType.ECDSA))
