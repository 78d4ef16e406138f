"""Our errors as those that users of aiohttp expect."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError

import trioconn

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey

HTTP_PROXIES = frozenset({"http", "https"})


def translated(error: Exception, req: Any, path: str | None = None) -> BaseException:
    """What aiohttp's own connectors would raise for `error`. Its cause is to be `error`.

    Args:
      req: aiohttp's request.
      path: of the Unix socket, if it is one.
    """
    key: ConnectionKey = req.connection_key
    if isinstance(error, trioconn.ConnectorClosedError):
        return aiohttp.ClientConnectionError("Connector is closed.")
    if isinstance(error, trioconn.InvalidTargetError):
        return aiohttp.InvalidURL(req.url, str(error))
    if isinstance(error, trioconn.ConnectTimeoutError) and error.errno is None:
        return TimeoutError(str(error))  # aiohttp's client makes its ConnectionTimeoutError of it
    if isinstance(error, trioconn.ProxyRefusedError) and _by_http_proxy(error):
        return aiohttp.ClientHttpProxyError(
            req.request_info,
            (),
            status=error.status,
            message=error.reason,
            headers=_headers(error),
        )
    if isinstance(error, trioconn.FingerprintMismatchError):
        return aiohttp.ServerFingerprintMismatch(error.expected, error.got, key.host, key.port or 0)
    if isinstance(error, trioconn.ConnectError):
        return _connector_error(error, key, path)
    return error


def _connector_error(error: trioconn.ConnectError, key: ConnectionKey, path: str | None) -> BaseException:
    # What went wrong with the TLS of a proxy is told as such, as aiohttp does.
    of_proxy = isinstance(error, trioconn.ProxyError)
    detail = error.__cause__ if of_proxy and isinstance(error.__cause__, trioconn.TLSError) else error
    if isinstance(detail, trioconn.CertificateError):
        return aiohttp.ClientConnectorCertificateError(key, detail)
    if isinstance(detail, trioconn.TLSError) and _is_from_openssl(detail):
        return aiohttp.ClientConnectorSSLError(key, shown(error))
    if of_proxy:
        return aiohttp.ClientProxyConnectionError(key, shown(error))
    if isinstance(error, trioconn.ResolveError):
        return aiohttp.ClientConnectorDNSError(key, shown(error))
    if isinstance(error, trioconn.UnixConnectError):
        return UnixClientConnectorError(path or "", key, shown(error))
    return aiohttp.ClientConnectorError(key, shown(error))


def shown(error: trioconn.ConnectError) -> OSError:
    """An OSError with a `strerror`, which is what aiohttp shows; ours have one only where there is an errno."""
    return OSError(error.errno, error.message)


def _by_http_proxy(error: trioconn.ProxyRefusedError) -> bool:
    route = error.route
    return route is None or route.proxies[error.hop].scheme in HTTP_PROXIES


def _headers(error: trioconn.ProxyRefusedError) -> Any:
    from multidict import CIMultiDict, CIMultiDictProxy

    return CIMultiDictProxy(
        CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in error.headers)
    )


def _is_from_openssl(error: BaseException) -> bool:
    """Whether TLS itself failed. A handshake that was cut off is a connection error to aiohttp."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return not isinstance(seen, ssl.SSLEOFError)
        seen = seen.__cause__
    return False
