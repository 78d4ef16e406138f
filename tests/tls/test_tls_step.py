"""The TLS step: what is verified, pinned, resumed and closed, against a real server."""

from __future__ import annotations

import gc
import hashlib
import os
import socket
import ssl
import struct
import weakref
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

import trioconn
from trioconn import events
from trioconn._errors import CertificateError, FingerprintMismatchError, InvalidTargetError, TLSError
from trioconn._establish import tls_context, tls_sessions, tls_step
from trioconn._establish.sockets import SocketStream
from trioconn._establish.tls import TLSStream
from trioconn._establish.tls_sessions import LONGEST, SessionStore
from trioconn._establish.tls_step import handshake
from trioconn._route import ContextTrust, DefaultTrust, TLSStep

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
both_versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


def step_for(context: ssl.SSLContext, name: str | None = "a.test", **options: object) -> TLSStep:
    return TLSStep(ContextTrust.of(context), name, **options)


UNVERIFIED = DefaultTrust(verified=False)


async def shake(server, step, *, sessions=None, key="key", report=None, streams=None) -> TLSStream:
    stream = SocketStream(server.connect())
    if streams is not None:
        streams.append(stream)
    return await handshake(stream, step, sessions=sessions, key=key, report=report, host_shown="a.test:443")


async def exchange(tls: TLSStream, data: bytes = b"ping") -> None:
    await tls.send_all(data)
    assert await tls.receive_some() == data


def recorder(into: list[tuple[type, dict[str, object]]]) -> events.Report:
    return lambda kind, **fields: into.append((kind, fields))


def use(tls: TLSStream) -> TLSStream:
    assert tls.probe(), tls.probe_reason
    return tls


# Trust


@both_versions
async def test_a_trusted_peer(authority, serve, version) -> None:
    seen = []
    server = serve(authority.server(version=version))
    tls = await shake(server, step_for(authority.client()), report=recorder(seen))
    await exchange(tls)
    assert tls.server_hostname == "a.test"
    tls.close_nowait()
    assert server.result() == b"ping"
    assert [kind for kind, _ in seen] == [events.TLSStarted, events.TLSFinished]
    assert seen[0][1] == {"hop": -1, "server_name": "a.test"}
    assert seen[1][1]["version"] == ("TLSv1.2" if version == V12 else "TLSv1.3")
    assert seen[1][1]["resumed"] is False
    assert seen[1][1]["certificate"] == ssl.PEM_cert_to_DER_cert(ssl.DER_cert_to_PEM_cert(seen[1][1]["certificate"]))
    assert all(hasattr(kind, "__dataclass_fields__") and set(f) <= set(kind.__dataclass_fields__) for kind, f in seen)


def past() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)


BAD_PEERS = {
    "wrong name": (lambda a, s: a.server("other.test"), 62, ["a.test", "server_hostname"]),
    "unknown authority": (lambda a, s: s.server(), 20, ["authority", "context that trusts it"]),
    "expired": (lambda a, s: a.server(not_after=past()), 10, ["expired", "clock"]),
}


@pytest.mark.case("urllib3#2571")
@pytest.mark.security(82)
@pytest.mark.parametrize("what", BAD_PEERS)
@both_versions
async def test_a_bad_certificate_fails_closed(authority, stranger, serve, what, version) -> None:
    make, code, words = BAD_PEERS[what]
    server_context = make(authority, stranger)
    server_context.minimum_version = server_context.maximum_version = version
    server = serve(server_context)
    step = step_for(authority.client(), hop=2)
    for turn in range(2):  # the second call gets no further than the first (CVE-2013-2037)
        streams: list[SocketStream] = []
        reports = []
        with pytest.raises(CertificateError) as caught:
            await shake(server, step, streams=streams, report=recorder(reports))
        assert streams[0].fileno() == -1
        assert isinstance(server.result(), OSError | bytes)  # ended: it saw our alert or the end
        assert server.accepted == turn + 1
        error = caught.value
        assert (error.stage, error.hop, error.errno) == ("tls", 2, None)
        assert error.verify_code == code
        assert isinstance(error, ssl.SSLCertVerificationError)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert all(word in str(error) for word in ["a.test:443", *words]), str(error)
        assert reports[-1] == (events.TLSFinished, {"hop": 2, "error": error})


@pytest.mark.security(78)
@pytest.mark.parametrize(
    ("asked", "certificate", "accepted"),
    [
        ("127.0.0.1", ["127.0.0.1"], True),
        ("::1", ["::1"], True),
        ("127.0.0.1", ["localhost"], False),
        ("127.0.0.1", ["*.0.0.1"], False),
        ("::1", ["127.0.0.1"], False),
        ("127.0.0.2", ["127.0.0.1"], False),
        ("b.a.test", ["*.a.test"], True),
        ("a.test", ["*.a.test"], False),
    ],
)
async def test_names_and_addresses(authority, serve, asked, certificate, accepted) -> None:
    server = serve(authority.server(*certificate))
    step = step_for(authority.client(), asked)
    if accepted:
        (await shake(server, step)).close_nowait()
    else:
        with pytest.raises(CertificateError, match=r"not for the (name|address)"):
            await shake(server, step)


async def test_no_verification_without_a_name(authority, serve) -> None:
    server = serve(authority.server())
    streams: list[SocketStream] = []
    with pytest.raises(InvalidTargetError, match="server_hostname"):
        await shake(server, step_for(authority.client(), None), streams=streams)
    assert streams[0].fileno() == -1
    with pytest.raises(ValueError, match="server_hostname"):
        TLSStream(trio.testing.memory_stream_pair()[0], authority.client())


async def test_unverified_accepts_anybody_and_says_so(stranger, serve) -> None:
    server = serve(stranger.server("whoever.test"))
    tls = await shake(server, TLSStep(UNVERIFIED, "a.test"))
    assert tls.context.verify_mode == ssl.CERT_NONE
    assert tls.getpeercert() == {}
    await exchange(tls)
    tls.close_nowait()


async def test_a_context_changed_after_the_route_was_made(authority, serve) -> None:
    server = serve(authority.server())
    context = authority.client()
    step = step_for(context)
    sessions = SessionStore()
    tls = await shake(server, step, sessions=sessions)
    await exchange(tls)
    sessions.harvest("key", tls)
    tls.close_nowait()
    assert len(sessions) == 1
    context.check_hostname = False
    with pytest.raises(InvalidTargetError, match="changed"):
        await shake(server, step, sessions=sessions)
    assert len(sessions) == 0


# Failures that are not about certificates


async def fail_with(serve, authority, raw, step=None) -> TLSError:
    server = serve(authority.server(), raw=raw)
    streams: list[SocketStream] = []
    with pytest.raises(TLSError) as caught:
        await shake(server, step or step_for(authority.client()), streams=streams)
    assert streams[0].fileno() == -1
    assert not isinstance(caught.value, CertificateError)
    return caught.value


@pytest.mark.security(53)
@pytest.mark.parametrize("junk", [b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n"])
async def test_a_peer_that_does_not_speak_tls(serve, authority, junk) -> None:
    error = await fail_with(serve, authority, lambda sock: (sock.sendall(junk), sock.recv(1000)))
    assert "does not speak TLS" in str(error)


@pytest.mark.security(55)
async def test_data_and_an_end_before_the_handshake(serve, authority) -> None:
    error = await fail_with(serve, authority, lambda sock: sock.sendall(b"secret"))
    assert "secret" not in str(error)


async def test_end_before_the_handshake(serve, authority) -> None:
    error = await fail_with(serve, authority, lambda sock: sock.recv(10_000))
    assert "closed the connection" in str(error)


async def test_close_notify_before_the_handshake(serve, authority) -> None:
    error = await fail_with(serve, authority, lambda sock: (sock.sendall(b"\x15\x03\x03\0\x02\x01\0"), sock.recv(9999)))
    assert "closed the connection" in str(error)


async def test_reset_in_the_handshake(serve, authority) -> None:
    def reset(sock: socket.socket) -> None:
        sock.recv(1)  # unread bytes make the close a reset
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    error = await fail_with(serve, authority, reset)
    assert error.errno is not None
    assert "connection broke" in str(error)


async def test_no_version_in_common(serve, authority) -> None:
    server = serve(authority.server(version=V12))
    context = authority.client()
    context.minimum_version = V13
    with pytest.raises(TLSError, match="no TLS version in common"):
        await shake(server, step_for(context))


@pytest.mark.security(56)
async def test_nothing_works_after_a_failed_handshake(serve, authority, stranger) -> None:
    server = serve(stranger.server())
    tls = TLSStream(SocketStream(server.connect()), authority.client(), server_hostname="a.test", https_compatible=True)
    with pytest.raises(trio.BrokenResourceError):
        await tls.do_handshake()
    for call in (tls.receive_some, lambda: tls.send_all(b"x"), tls.do_handshake, tls.wait_send_all_might_not_block):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    for call in (tls.receive_nowait, lambda: tls.send_nowait(b"x")):
        with pytest.raises(trio.BrokenResourceError):
            call()
    assert not tls.probe()
    assert tls.probe_reason == "error"
    tls.close_nowait()


@pytest.mark.security(67)
async def test_no_data_before_the_handshake_is_finished(serve, authority) -> None:
    server = serve(authority.server(version=V13))
    stream = SocketStream(server.connect())
    tls = TLSStream(stream, authority.client(), server_hostname="a.test")
    with pytest.raises(trio.NeedHandshakeError):
        tls.send_nowait(b"early")
    with pytest.raises(trio.NeedHandshakeError):
        tls.receive_nowait()
    await exchange(tls)  # implies the handshake first
    tls.close_nowait()
    assert server.result() == b"ping"


# Ownership


@pytest.mark.case("httpcore#443")
async def test_a_mute_peer_and_a_cancellation(serve, authority, autojump_clock) -> None:
    gc.disable()
    try:
        mute, peer = socket.socketpair()
        with peer:
            peer.setblocking(False)
            with trio.move_on_after(1) as scope:
                await handshake(
                    SocketStream(mute),
                    step_for(authority.client()),
                    sessions=None,
                    key=None,
                    report=None,
                    host_shown="a.test:443",
                )
            assert scope.cancelled_caught
            assert mute.fileno() == -1
            assert peer.recv(100_000)[:1] == b"\x16"
            assert peer.recv(1) == b""
    finally:
        gc.enable()


@pytest.mark.case("trio#809")
async def test_cancelled_at_every_checkpoint(serve, authority) -> None:
    server = serve(authority.server())
    step = step_for(authority.client())

    class Counting(trio.abc.Instrument):
        def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, at: int) -> None:
            self.left, self.task, self.scope = at, task, scope

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task is self.task:
                self.left -= 1
                if self.left == 0:
                    self.scope.cancel()

    for at in range(1, 100):
        streams: list[SocketStream] = []
        with trio.CancelScope() as scope:
            counting = Counting(trio.lowlevel.current_task(), scope, at)
            trio.lowlevel.add_instrument(counting)
            try:
                tls = await shake(server, step, streams=streams)
            finally:
                trio.lowlevel.remove_instrument(counting)
            assert use(tls)
            tls.close_nowait()
        assert streams[0].fileno() == -1
        if not scope.cancelled_caught and counting.left > 0:
            assert at > 1
            break
    else:
        pytest.fail("the handshake never ended")


@pytest.mark.case("anyio#809")
@pytest.mark.parametrize("how", ["certificate", "pin", "not TLS"])
async def test_a_failure_leaves_no_cycle(serve, authority, stranger, how) -> None:
    """The stream dies with the exception, without a garbage collection."""
    server = serve(
        stranger.server(), raw=(lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) if how == "not TLS" else None
    )
    pinned = TLSStep(UNVERIFIED, "a.test", pin=bytes(32))
    stream = SocketStream(server.connect())
    gone = weakref.ref(stream)
    gc.collect()
    gc.disable()
    try:
        try:
            await handshake(
                stream,
                pinned if how == "pin" else step_for(authority.client()),
                sessions=SessionStore(),
                key="key",
                report=None,
                host_shown="a.test:443",
            )
        except TLSError:
            del stream
        else:
            pytest.fail("the handshake succeeded")
        assert gone() is None
    finally:
        gc.enable()


async def test_a_foreign_transport_is_closed_too(authority) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def junk() -> None:
            await theirs.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        with pytest.raises(TLSError, match="does not speak TLS"):
            await handshake(
                ours, step_for(authority.client()), sessions=None, key=None, report=None, host_shown="a.test:443"
            )
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


async def test_start_tls_makes_the_layer_of_the_target_and_no_other(authority, stranger) -> None:
    """A route through proxies has more: those are for whoever opened the tunnel."""
    proxy = trioconn.Proxy("https://p.test", ssl=stranger.client())
    route = trioconn.TCPConnector(ssl=authority.client(), proxy=proxy).route("https://a.test")
    assert len(route.steps) == 3
    ours, theirs = trio.testing.memory_stream_pair()
    server = TLSStream(theirs, authority.server(), server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        stream = await trioconn.start_tls(ours, route)
    assert isinstance(stream, TLSStream)
    assert stream.transport_stream is ours
    assert stream.server_hostname == "a.test"
    await server.send_all(b"x")
    assert await stream.receive_some() == b"x"


@pytest.mark.parametrize("words", ["the tunnel fell in", ""])
async def test_a_foreign_transport_that_does_not_say_why(authority, words) -> None:
    class Broken(trio.abc.Stream):
        closed = False

        async def send_all(self, data: bytes) -> None:
            raise trio.BrokenResourceError(words)

        wait_send_all_might_not_block = receive_some = send_all

        async def aclose(self) -> None:
            self.closed = True
            await trio.lowlevel.checkpoint()

    broken = Broken()
    with pytest.raises(TLSError, match=rf"with a\.test:443 failed: {words or 'the connection broke'}$"):
        await handshake(
            broken, step_for(authority.client()), sessions=None, key=None, report=None, host_shown="a.test:443"
        )
    assert broken.closed


async def test_a_certificate_refused_for_a_rare_reason(authority, serve) -> None:
    """Where we have no words of our own, those of OpenSSL are shown, and no advice is better than a wrong one."""
    context = authority.client()
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF  # without any list of revocations
    with pytest.raises(CertificateError, match=r"not accepted: unable to get certificate CRL$") as caught:
        await shake(serve(authority.server()), step_for(context))
    assert caught.value.verify_code == 3


# Pins


@pytest.mark.case("urllib3#2991")
@pytest.mark.security(83)
@pytest.mark.security(84)
@both_versions
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_pins(authority, stranger, serve, version, algorithm) -> None:
    server = serve(stranger.server(version=version))
    digest = hashlib.new(algorithm, await leaf_of(server)).digest()
    tls = await shake(server, TLSStep(UNVERIFIED, "a.test", pin=digest))  # the pin alone decides
    await exchange(tls)
    tls.close_nowait()
    with pytest.raises(CertificateError):  # the pin does not replace what the context demands
        await shake(server, step_for(authority.client(), pin=digest))

    wrong = bytes(len(digest))
    for _ in range(2):
        streams: list[SocketStream] = []
        with pytest.raises(FingerprintMismatchError) as caught:
            await shake(server, TLSStep(UNVERIFIED, "a.test", pin=wrong, hop=0), streams=streams)
        assert streams[0].fileno() == -1
        error = caught.value
        assert (error.stage, error.hop) == ("pin", 0)
        assert (error.expected, error.got) == (wrong, digest)
        assert wrong.hex() in str(error)
        assert digest.hex() in str(error)


async def leaf_of(server) -> bytes:
    tls = await shake(server, TLSStep(UNVERIFIED, "a.test"))
    tls.close_nowait()
    return tls.getpeercert(binary_form=True)


async def test_the_pin_is_of_the_leaf(authority, serve) -> None:
    context = authority.server()
    server = serve(context)
    issuer = ssl.PEM_cert_to_DER_cert(authority.ca.cert_pem.bytes().decode())
    with pytest.raises(FingerprintMismatchError):
        await shake(server, TLSStep(UNVERIFIED, "a.test", pin=hashlib.sha256(issuer).digest()))


@pytest.mark.security(66)
@both_versions
async def test_pinned_steps_never_resume(authority, serve, version) -> None:
    server = serve(authority.server(version=version))
    context = authority.client()
    sessions = SessionStore()
    right = hashlib.sha256(await leaf_of(server)).digest()
    # Even where a session lies under that key, it is not offered, and none is taken.
    tls = await shake(server, step_for(context), sessions=sessions)
    await exchange(tls)
    sessions.harvest("key", tls)
    tls.close_nowait()
    assert len(sessions) == 1
    tls = await shake(server, step_for(context, pin=right), sessions=sessions)
    assert not tls.session_reused
    await exchange(tls)
    assert sessions.harvest("key", tls)
    tls.close_nowait()
    for _ in range(2):
        with pytest.raises(FingerprintMismatchError):
            await shake(server, step_for(context, pin=bytes(32)), sessions=sessions)
    assert server.resumed[:2] == [False, False]
    assert not any(server.resumed)


@pytest.mark.security(84)
async def test_a_remembered_certificate_satisfies_no_pin(authority, serve) -> None:
    """It cannot come to that, since no session is offered; were one offered, the pin would still refuse."""
    server, sessions = serve(authority.server()), SessionStore()
    step = step_for(authority.client())
    await visit(server, step, sessions)
    tls = await shake(server, step, sessions=sessions)
    assert tls.session_reused
    digest = hashlib.sha256(tls.getpeercert(binary_form=True)).digest()
    with pytest.raises(FingerprintMismatchError):
        tls_step._check_pin(tls, replace(step, pin=digest), "a.test:443")
    tls.close_nowait()


# Sessions


async def visit(server, step, sessions, key="key") -> bool:
    tls = await shake(server, step, sessions=sessions, key=key)
    await exchange(tls)
    assert sessions.harvest(key, tls)
    reused = tls.session_reused
    tls.close_nowait()
    return reused


@both_versions
async def test_resumption(authority, serve, version) -> None:
    server = serve(authority.server(version=version))
    step, sessions = step_for(authority.client()), SessionStore()
    assert [await visit(server, step, sessions) for _ in range(4)] == [False, True, True, True]
    sessions.clear()
    assert [await visit(server, step, sessions) for _ in range(2)] == [False, True]
    for _ in range(6):
        server.result()
    assert server.resumed == [False, True, True, True, False, True]


@both_versions
@pytest.mark.parametrize("leaks", [True, False])
async def test_where_looking_leaks_a_session_serves_again(authority, serve, version, leaks, monkeypatch) -> None:
    """Each look at a session loses 6 KiB on some Pythons (python/cpython#116810). On others a ticket serves once."""
    monkeypatch.setattr(tls_sessions, "_LOOKING_LEAKS", leaks)
    server, context = serve(authority.server(version=version)), authority.client()
    step, sessions = step_for(context), SessionStore()
    resumed, offered = [], []
    for _ in range(3):
        resumed.append(await visit(server, step, sessions))
        offered.append(sessions.offer("key", context))
    assert resumed == [False, True, True]
    assert len(set(map(id, offered))) == (1 if leaks else 3)


async def test_a_ticket_comes_with_the_first_data(authority, serve) -> None:
    server = serve(authority.server(version=V13))
    step, sessions = step_for(authority.client()), SessionStore()
    tls = await shake(server, step, sessions=sessions)
    # It may have come with the handshake's last bytes or not: before it was read it is not there.
    assert not sessions.harvest("key", tls)
    assert len(sessions) == 0
    await exchange(tls)
    assert sessions.harvest("key", tls)
    assert len(sessions) == 1
    tls.close_nowait()


async def test_a_server_without_tickets_is_not_asked_for_ever(authority, serve) -> None:
    context = authority.server(version=V13)
    context.num_tickets = 0
    server = serve(context)
    sessions = SessionStore()
    tls = await shake(server, step_for(authority.client()), sessions=sessions)
    answers = []
    for _ in range(5):
        await exchange(tls)
        answers.append(sessions.harvest("key", tls))
    assert answers == [False, False, False, True, True]
    assert len(sessions) == 0
    tls.close_nowait()


@pytest.mark.security(64)
@both_versions
async def test_a_session_is_offered_under_its_own_key_only(authority, serve, version) -> None:
    server = serve(authority.server("a.test", version=version))
    context, sessions = authority.client(), SessionStore()
    step = step_for(context)
    assert not await visit(server, step, sessions, key=("a.test", -1))
    other = replace(step, server_name="b.test")
    with pytest.raises(CertificateError, match=r"b\.test"):
        await visit(server, other, sessions, key=("b.test", -1))
    # Python itself would have resumed it for any name: that is what the key is for.
    tls = TLSStream(
        SocketStream(server.connect()),
        context,
        server_hostname="b.test",
        session=sessions.offer(("a.test", -1), context),
    )
    await tls.do_handshake()
    assert tls.session_reused
    tls.close_nowait()
    assert await visit(server, step, sessions, key=("a.test", -1))


@pytest.mark.security(65)
async def test_an_unverified_session_is_no_verdict(stranger, serve) -> None:
    server = serve(stranger.server())
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    sessions = SessionStore()
    lax = step_for(context)
    assert not await visit(server, lax, sessions, key=lax)
    assert await visit(server, lax, sessions, key=lax)
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    strict = step_for(context)
    assert strict != lax
    with pytest.raises(CertificateError):
        await visit(server, strict, sessions, key=strict)


@pytest.mark.security(63)
async def test_another_context_does_not_resume(authority, serve) -> None:
    server = serve(authority.server())
    sessions = SessionStore()
    assert not await visit(server, step_for(authority.client()), sessions)
    # The same key on purpose: the store itself refuses.
    assert not await visit(server, step_for(authority.client()), sessions)


async def test_a_failure_forgets_the_session_and_those_to_come(authority, stranger, serve) -> None:
    server, liar = serve(authority.server()), serve(stranger.server())
    step, sessions = step_for(authority.client()), SessionStore()
    assert not await visit(server, step, sessions)
    standing = await shake(server, step, sessions=sessions)
    await exchange(standing)
    with pytest.raises(CertificateError):
        await shake(liar, step, sessions=sessions)
    assert len(sessions) == 0
    assert sessions.harvest("key", standing)  # it was verified before the failure: what it brings is not taken
    assert len(sessions) == 0
    standing.close_nowait()
    assert not await visit(server, step, sessions)
    assert await visit(server, step, sessions)


async def test_a_cancelled_handshake_is_no_failure(authority, serve) -> None:
    server = serve(authority.server())
    step, sessions = step_for(authority.client()), SessionStore()
    assert not await visit(server, step, sessions)
    with trio.CancelScope() as scope:
        scope.cancel()
        await shake(server, step, sessions=sessions)
    assert len(sessions) == 1


async def test_a_verdict_is_not_carried_on_for_ever(authority, serve, mock_clock) -> None:
    server = serve(authority.server())
    step, sessions = step_for(authority.client()), SessionStore()
    assert not await visit(server, step, sessions)
    mock_clock.jump(LONGEST * 0.6)
    assert await visit(server, step, sessions)
    mock_clock.jump(LONGEST * 0.6)  # the ticket is fresh, the verdict is not
    assert not await visit(server, step, sessions)


async def test_the_store_is_bounded(authority, serve) -> None:
    server = serve(authority.server())
    step, sessions = step_for(authority.client()), SessionStore(2)
    for key in "abacb":
        await visit(server, step, sessions, key=key)
    assert len(sessions) == 2
    # `a` was used more recently than `b` when `c` came; then `b` came again and `a` was the oldest.
    assert [await visit(server, step, sessions, key=key) for key in "cb"] == [True, True]


async def test_streams_that_were_not_admitted(authority, serve) -> None:
    server, sessions = serve(authority.server()), SessionStore()
    tls = await shake(server, step_for(authority.client()))
    await exchange(tls)
    assert sessions.harvest("key", tls)
    assert sessions.harvest("key", tls.transport_stream)
    sessions.admit("key", tls)
    assert sessions.harvest("another key", tls)
    assert len(sessions) == 0
    tls.close_nowait()


@both_versions
async def test_a_verdict_that_was_forgotten_meanwhile_is_not_carried_on(authority, serve, version) -> None:
    """A resumed handshake verifies nothing: if what it relied on is gone, its session is worth nothing to anybody."""
    server, sessions = serve(authority.server(version=version)), SessionStore()
    step = step_for(authority.client())
    await visit(server, step, sessions)
    tls = await shake(server, step, sessions=sessions)
    assert tls.session_reused
    await exchange(tls)
    sessions.drop("key")
    sessions.admit("key", tls)
    assert sessions.harvest("key", tls)
    assert len(sessions) == 0
    tls.close_nowait()


# Contexts


@pytest.fixture
def no_contexts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, tuple[str, ...]]]:
    """An empty cache of contexts, and the calls that fill it."""
    made: list[tuple[bool, tuple[str, ...]]] = []
    make = tls_context._make

    def counted(verified: bool, alpn: tuple[str, ...]) -> ssl.SSLContext:
        made.append((verified, alpn))
        default = trio.from_thread.run_sync(trio.to_thread.current_default_thread_limiter)
        assert default.borrowed_tokens == 0
        return make(verified, alpn)

    monkeypatch.setattr(tls_context, "_make", counted)
    monkeypatch.setattr(tls_context, "_contexts", type(tls_context._contexts)())
    return made


@pytest.mark.aiohttp("ssl_context_once")
@pytest.mark.aiohttp("default_ssl_context_creation_without_ssl")
async def test_default_contexts_are_made_once(no_contexts) -> None:
    steps = [
        TLSStep(DefaultTrust(verified), "a.test", alpn)
        for verified in (True, False)
        for alpn in ((), ("h2", "http/1.1"))
    ]
    got: dict[TLSStep, set[ssl.SSLContext]] = {step: set() for step in steps}

    async def ask(step: TLSStep) -> None:
        got[step].add(await tls_context.context_for(step))

    async with trio.open_nursery() as nursery:
        for step in steps * 3:
            nursery.start_soon(ask, step)
    assert sorted(no_contexts) == sorted((step.trust.verified, step.alpn) for step in steps)
    assert [len(contexts) for contexts in got.values()] == [1, 1, 1, 1]
    assert len(set.union(*got.values())) == 4
    for step, (context,) in got.items():
        assert context.check_hostname is step.trust.verified
        assert context.verify_mode is (ssl.CERT_REQUIRED if step.trust.verified else ssl.CERT_NONE)


async def test_the_first_to_ask_is_cancelled(no_contexts) -> None:
    step = TLSStep(DefaultTrust(verified=True), "a.test")
    got = []

    async def ask() -> None:
        got.append(await tls_context.context_for(step))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                scope.cancel()
    assert len(no_contexts) == 1
    assert len(set(got)) == 1


async def test_a_context_that_cannot_be_made(no_contexts, monkeypatch) -> None:
    make = tls_context._make
    broken = [True]

    def fails(verified: bool, alpn: tuple[str, ...]) -> ssl.SSLContext:
        if broken.pop():
            broken.append(False)
            raise FileNotFoundError("no such key log")
        return make(verified, alpn)

    monkeypatch.setattr(tls_context, "_make", fails)
    step = TLSStep(DefaultTrust(verified=True), "a.test")
    errors, got = [], []

    async def ask() -> None:
        try:
            got.append(await tls_context.context_for(step))
        except FileNotFoundError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert len(errors) == 1  # each error belongs to one task; the next in line tried again
    assert len(got) == 2


async def test_contexts_are_bounded(no_contexts, monkeypatch) -> None:
    monkeypatch.setattr(tls_context, "_make", lambda verified, alpn: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for number in range(tls_context.MOST_CONTEXTS + 5):
        await tls_context.context_for(TLSStep(UNVERIFIED, None, (str(number),)))
    assert len(tls_context._contexts) == tls_context.MOST_CONTEXTS


async def test_key_log_and_alpn(no_contexts, tmp_path, monkeypatch, authority, serve) -> None:
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", os.fspath(log))
    context = authority.server()
    monkeypatch.delenv("SSLKEYLOGFILE")
    context.set_alpn_protocols(["h2", "http/1.1"])
    server = serve(context)
    monkeypatch.setenv("SSLKEYLOGFILE", os.fspath(log))
    tls = await shake(server, TLSStep(UNVERIFIED, "a.test", ("http/1.1",)))
    assert tls.selected_alpn_protocol() == "http/1.1"
    tls.close_nowait()
    assert "CLIENT_" in log.read_text()


async def test_a_callers_context_is_not_changed(authority, serve) -> None:
    server = serve(authority.server())
    context = authority.client()

    def everything() -> list[object]:
        return [getattr(context, name) for name in dir(context) if not callable(getattr(context, name))]

    before = everything()
    step = step_for(context)
    tls = await shake(server, step, sessions=SessionStore())
    assert tls.context is context
    await exchange(tls)
    tls.close_nowait()
    assert everything() == before
