"""Errors as values: they are copied, pickled to other processes, and read by those who know the standard library's."""

from __future__ import annotations

import copy
import errno
import importlib.metadata
import pickle
import socket
import ssl
from typing import Any
from unittest.mock import ANY

import pytest
import trio

import trioconn
from trioconn._errors import ConnectError
from trioconn.testing import Fail, ScriptedConnector

from .common import A, settle


def kinds(of: type[ConnectError]) -> list[type[ConnectError]]:
    return [of, *(kind for below in of.__subclasses__() for kind in kinds(below))]


def route_with_secrets() -> trioconn.Route:
    connector = trioconn.TCPConnector(ssl=ssl.create_default_context(), proxy="http://user:opensesame@proxy.test:3128")
    return connector.route("https://a.test")


@pytest.mark.parametrize("kind", kinds(ConnectError))
@pytest.mark.parametrize("number", [None, errno.ECONNREFUSED])
def test_an_error_crosses_to_another_process_without_its_route(kind: type[ConnectError], number: int | None) -> None:
    error = kind("it failed", errno=number, stage="tls", hop=0, route=route_with_secrets())
    error.add_note("a note")
    data = pickle.dumps(error)
    assert b"opensesame" not in data
    again = pickle.loads(data)
    assert type(again) is kind and again.route is None and error.route is not None
    assert (str(again), again.args, again.errno) == ("it failed", error.args, number)
    assert (again.stage, again.hop, again.__notes__) == ("tls", 0, ["a note"])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_of_an_error_keeps_its_route(duplicate: Any) -> None:
    error = trioconn.ProxyRefusedError("no", errno=5, stage="proxy", hop=0, route=route_with_secrets())
    error.status = 407
    again = duplicate(error)
    assert again is not error and type(again) is trioconn.ProxyRefusedError
    assert again.route is error.route and (again.status, again.errno, str(again)) == (407, 5, "no")


def test_a_route_is_copied_as_itself_and_never_pickled() -> None:
    route = route_with_secrets()
    assert copy.copy(route) is route and copy.deepcopy([route])[0] is route
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(route)


def test_a_route_is_equal_to_routes_and_to_what_says_so() -> None:
    route = route_with_secrets()
    assert route != "https://a.test" and route != route.endpoint and route == ANY
    assert route not in {"https://a.test": 1}


class Picky(Exception):
    """Has arguments that are not its constructor's, so copying raises."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{code}: {what}")


class Plain(Picky):
    """Is pickled as something that every process has, and copied as that, too."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RuntimeError, (str(self),)


@pytest.mark.parametrize("kind", [Picky, Plain])
async def test_an_exception_that_cannot_be_copied_is_given_to_all(kind: type[Picky]) -> None:
    """One object in two tasks is bad; but an error of our own about the copy, or another one, would be worse."""
    async with ScriptedConnector(Fail(kind(7, "no")), limit=1) as connector, trio.open_nursery() as nursery:
        caught: list[BaseException] = []

        async def call() -> None:
            with pytest.raises(kind, match="7: no") as error:
                await connector.connect(A)
            caught.append(error.value)

        for _ in range(3):
            nursery.start_soon(call)
        await settle()
        assert len(caught) == 3


def test_a_certificate_error_has_what_those_of_ssl_have() -> None:
    error = trioconn.CertificateError("not accepted")
    assert (error.reason, error.library) == ("CERTIFICATE_VERIFY_FAILED", "SSL")
    assert (error.verify_code, error.verify_message) == (0, "")


async def test_a_timeout_of_the_system_is_a_timeout_wherever_it_happens() -> None:
    late = TimeoutError(errno.ETIMEDOUT, "Connection timed out")
    async with ScriptedConnector(Fail(late)) as connector:
        with pytest.raises(trioconn.ConnectTimeoutError) as caught:
            await connector.connect(A)
        assert isinstance(caught.value, TimeoutError) and caught.value.errno == errno.ETIMEDOUT
        assert isinstance(caught.value.__cause__, TimeoutError) and caught.value.route == connector.route(A)
        await settle()


@pytest.mark.parametrize("name", ["limit", "limit_per_host", "max_uses", "dns_cache_max_size", "interleave"])
@pytest.mark.parametrize("number", [-1, -0.5, float("nan"), float("-inf")])
def test_a_negative_number_of_things_is_a_value_error(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=name):
        trioconn.TCPConnector(**{name: number})


@pytest.mark.parametrize("number", [1.5, "3", True, float("inf")])
def test_a_number_of_things_is_an_int(number: object) -> None:
    with pytest.raises(TypeError, match="limit"):
        trioconn.TCPConnector(limit=number)


def test_what_cannot_be_called_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="protocol_factory"):
        ScriptedConnector(protocol_factory=1)


def test_a_coroutine_function_is_refused_where_an_answer_is_needed_at_once() -> None:
    async def policy(host: str, address: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    class Late(trioconn.BaseConnector):
        async def is_clean(self, stream: object) -> bool:  # type: ignore[override]
            return False

    with pytest.raises(TypeError, match="address_policy"):
        trioconn.TCPConnector(address_policy=policy)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is_clean"):
        Late()


@pytest.mark.parametrize("seconds", ["1", object(), [], 1j, float("nan"), -1, True])
async def test_release_never_raises_and_never_loses_the_slot(seconds: Any) -> None:
    async with ScriptedConnector(limit=1) as connector:
        (await connector.connect(A)).release(idle_for=seconds)
        lease = await connector.connect(A)
        lease.release()
        assert connector.statistics().leased == 0


async def test_the_parts_of_an_error_know_their_route_too() -> None:
    class TwoDead(trioconn.Resolver):
        async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[trioconn.ResolveResult]:
            await trio.lowlevel.checkpoint()
            return [trioconn.ResolveResult(f"127.0.0.{n}", socket.AF_INET) for n in (1, 2)]

    async with trioconn.TCPConnector(resolver=TwoDead()) as connector:
        route = connector.route("tcp://two.test:1")
        with pytest.raises(trioconn.ConnectError) as caught:
            await connector.connect(route)
        group = caught.value.__cause__
        assert isinstance(group, ExceptionGroup)
        assert len(group.exceptions) == 2
        assert all(isinstance(part, trioconn.ConnectError) and part.route == route for part in group.exceptions)


def test_the_version_is_told() -> None:
    try:
        installed = importlib.metadata.version("trioconn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is used from its sources, without having been installed")
    assert trioconn.__version__ == installed
