"""Peers that a test makes up: scripted dials, a network without a wire, a proxy in memory.

For tests of clients that use a connector, under trio's virtual time (``autojump_clock`` of pytest-trio, or
`trio.testing.MockClock`), so that a timeout of half a minute costs nothing and happens at an exact moment:

* `ScriptedConnector`: a connector whose dials follow a script. Nothing of TCP, DNS or TLS; the quickest way to test
  what a client does when connections come late, fail, hang, or end while they are idle.
* `FakeNetwork`: hosts and addresses that answer, refuse, are slow or silent. ``network.connector()`` is a real
  `TCPConnector` in it: lookups, races, tunnels and TLS all happen, only the wire is made up.
* `ConnectProxy`: an HTTP proxy to put into that network, which says what it is told to say.
* `MemoryStream` and `memory_stream_pair`: what the scripted connector hands out.

All of them count what is open, so that a test can end with ``assert not connector.open_streams``.
"""

from __future__ import annotations

from ._network import ConnectProxy, FakeNetwork, FakeResolver
from ._scripted import Fail, Hang, ScriptedConnector, Succeed
from ._streams import MemoryStream, memory_stream_pair

__all__ = [
    "ConnectProxy",
    "Fail",
    "FakeNetwork",
    "FakeResolver",
    "Hang",
    "MemoryStream",
    "ScriptedConnector",
    "Succeed",
    "memory_stream_pair",
]
