"""What users bring may raise anything, at the worst moment: no background task dies of it, and nobody is cancelled."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

import trioconn
from trioconn.testing import memory_stream_pair

from .common import A, check_clean, settle


class Faulty(trio.abc.Stream):
    """A stream of somebody else's whose closing goes wrong."""

    def __init__(self, error: Exception, below: trio.abc.Stream | None = None) -> None:
        self.error = error
        self.below = below
        self.closed = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.below is not None and not self.closed:
            await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        assert self.below is not None
        return await self.below.receive_some(max_bytes)

    async def aclose(self) -> None:
        self.closed += 1
        try:
            if self.below is not None:
                await self.below.aclose()
        finally:
            raise self.error


class Connector(trioconn.BaseConnector):
    def __init__(self, make: Callable[[], Any], **options: Any) -> None:
        super().__init__(**options)
        self.make = make

    async def create_stream(self, route: trioconn.Route) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return await trioconn.start_tls(self.make(), route) if route.is_ssl else self.make()


ERRORS = [ValueError("not closed today"), trio.BrokenResourceError("gone"), OSError(5, "broken")]


@pytest.mark.parametrize("error", ERRORS, ids=["value", "broken", "os"])
@pytest.mark.parametrize("how", ["lease", "connector", "body", "idle"])
def test_a_stream_that_cannot_be_closed_ends_nothing_else(
    how: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Faulty(error)

    async def main() -> None:
        async with Connector(lambda: stream, keepalive_timeout=1) as connector:
            lease = await connector.connect(A)
            if how == "lease":
                lease.close()
            elif how == "idle":
                lease.release()
            elif how == "connector":
                await connector.aclose()
            await trio.sleep(2)
        check_clean(connector)

    # Not in a run of pytest-trio's: there a test that is cancelled by accident passes.
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert stream.closed == 1
    assert "could not be closed" in caplog.text and str(error) in caplog.text


@pytest.mark.parametrize("error", ERRORS, ids=["value", "broken", "os"])
@pytest.mark.parametrize("how", ["close", "aclose", "connector", "abort"])
async def test_tls_over_a_stream_that_cannot_be_closed(
    how: str, error: Exception, client_ssl: ssl.SSLContext, server_ssl: Callable[..., ssl.SSLContext]
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = Faulty(error, ours)
    came = False
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def peer() -> None:
            server = trio.SSLStream(theirs, server_ssl(), server_side=True, https_compatible=True)
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await server.do_handshake()
                await trio.sleep_forever()

        scopes: list[trio.CancelScope] = []
        async with Connector(lambda: stream) as connector:
            lease = await connector.connect("https://example.test", ssl=client_ssl)
            if how == "close":
                lease.close()
            elif how == "aclose":
                # Whoever closes a lease is told what is nobody's fault but the stream's.
                with pytest.raises(ValueError) if isinstance(error, ValueError) else contextlib.nullcontext():
                    await lease.aclose()
            else:
                await connector.aclose(abort_ssl=how == "abort")
            await settle()
            came = True
        check_clean(connector)
        await settle()
        scopes[0].cancel()
    assert came and stream.closed >= 1


@pytest.mark.parametrize("made", [None, object()])
async def test_what_is_no_stream_is_said_so(made: object) -> None:
    async with Connector(lambda: made) as connector:
        with pytest.raises(TypeError, match="create_stream"):
            await connector.connect(A)


def test_an_accident_in_the_background_is_not_hidden_by_its_own_cancellation() -> None:
    """No task of ours raises; but if one does, that must be what comes out, and not a stray `trio.Cancelled`."""

    async def accident() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async def main() -> None:
        async with Connector(lambda: None) as connector:
            nursery = connector._shell.crew.nursery
            assert nursery is not None
            nursery.start_soon(accident)
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError):
        trio.run(main)


@pytest.mark.parametrize("at", ["Queued", "DialStarted", "Created", "Released", "Closed"])
def test_what_is_no_exception_comes_out_of_an_observer_and_wrecks_nothing(at: str) -> None:
    """``pytest.fail()`` in an observer, say, is a BaseException: it is not for us to log it and go on."""

    class Halt(BaseException):
        pass

    def observer(event: object) -> None:
        if type(event).__name__ in (at, "Closed"):
            raise Halt

    async def main() -> None:
        async with Connector(lambda: memory_stream_pair()[0], observers=[observer]) as connector:
            (await connector.connect(A)).release()
            await trio.sleep(1)

    with pytest.raises(Halt):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_resolver_that_cannot_say_why_it_is_late(autojump_clock: trio.testing.MockClock) -> None:
    class Late(trioconn.Resolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
            await trio.sleep_forever()
            raise AssertionError

        def why_late(self) -> str:
            raise ValueError("no idea")

    came = False
    async with trioconn.TCPConnector(resolver=Late(), connect_timeout=None) as connector:
        with pytest.raises(trioconn.ResolveError, match="no answer within"):
            await connector.connect(A)
        came = True
    assert came
