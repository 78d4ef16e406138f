"""The recorder that searches every test here for logins has to hear, or it would find nothing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import trioconn
from trioconn import Proxy, Route, events


async def test_it_hears(recorder: Any) -> None:
    proxy = Proxy("http://127.0.0.1:1", auth=("hidden-user", "hidden-password"))
    async with trioconn.TCPConnector(proxy=proxy) as connector:
        with pytest.raises(trioconn.ProxyConnectError):
            await connector.connect("https://a.test")
    kinds = {type(thing) for thing in recorder.heard}
    assert {Proxy, Route, trioconn.TCPConnector, trioconn.ProxyConnectError, events.DialFailed} <= kinds
    logging.getLogger("trioconn.some").debug("said %s", "this")
    assert any("said this" in text for text in recorder.said)
    recorder.check()


@pytest.mark.parametrize("login", [("hidden-user", "hidden-password"), ("u", "p1"), ("u", "s3cret")])
@pytest.mark.parametrize("what", ["plain", "Basic", "cause"])
def test_it_finds(login: tuple[str, str], what: str, recorder: Any) -> None:
    proxy = Proxy("http://p.test", auth=login)
    if what == "Basic":
        recorder.hear(proxy.authorization)
    elif what == "plain":
        recorder.said.append(f"login as {login}")
    else:
        error = trioconn.ConnectError("failed")
        error.__cause__ = OSError(repr(login))
    if what != "Basic" and len(login[1]) < 6:
        recorder.check()  # too short to be looked for
    else:
        with pytest.raises(AssertionError, match="a login in what was recorded"):
            recorder.check()
    for notes in (recorder.heard, recorder.said, recorder.found):
        notes.clear()


def test_it_searches_very_many_as_they_come(recorder: Any) -> None:
    Proxy("http://p.test", auth=("hidden-user", "hidden-password"))
    recorder.hear("hidden-password")
    for number in range(2000):
        recorder.hear(number)
    assert len(recorder.heard) <= 1000
    assert recorder.found
    recorder.found.clear()
