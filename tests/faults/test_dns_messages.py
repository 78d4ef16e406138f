"""Whatever a name server sends: addresses of the family that was asked for, with their TTLs, or a `ResolveError`.

The answers are good ones, and bad ones that are well made, with something written over them. dnspython reads them; what
it makes of them, an exception of any class as well as a message of any shape, is what the resolver has to bear.
"""

from __future__ import annotations

import math
import socket
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trioconn
from trioconn._establish.resolve import sanitised

from .test_fuzz import check_message

pytest.importorskip("dns", reason="the extra dns is not installed")
import dns.exception
import dns.message
import dns.nameserver
import dns.rrset

# @ is the name that was asked for.
ZONES = [
    ["@ 300 IN A 192.0.2.1", "@ 300 IN A 192.0.2.9", "@ 60 IN AAAA 2001:db8::1"],
    ["@ 300 IN CNAME b.test.", "b.test. 20 IN A 192.0.2.2", "b.test. 20 IN AAAA ::ffff:192.0.2.2"],
    ["@ 300 IN CNAME b.test.", "b.test. 20 IN CNAME @"],
    ["other.test. 300 IN A 192.0.2.3", "other.test. 300 IN AAAA 2001:db8::3"],
    ["@ 2147483647 IN A 255.255.255.255", "@ 0 IN AAAA ::"],
    ["@ 300 IN TXT x", "@ 300 IN SOA . . 1 2 3 4 5"],
    [],
]
Overwrite = list[tuple[float, bytes, int]]
# Where in the message, what, and over how many bytes.
junk = st.binary(min_size=1, max_size=4)
overwrites = st.lists(
    st.one_of(
        st.builds(lambda at, junk: (at, junk, len(junk)), st.floats(0, 1), junk),
        st.tuples(st.floats(0, 1), junk, st.integers(0, 12)),
    ),
    max_size=3,
)
arguments = (
    st.sampled_from(ZONES),
    st.sampled_from([0, 0, 0, 0, 0, 2, 3, 15]),
    overwrites,
    st.sampled_from([socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6]),
)


class Liar(dns.nameserver.Nameserver):
    """A name server whose messages have something written over them."""

    def __init__(self, zone: list[str], rcode: int, overwrite: Overwrite) -> None:
        super().__init__()
        self._zone = zone
        self._rcode = rcode
        self._overwrite = overwrite

    def __str__(self) -> str:
        return "liar"

    def kind(self) -> str:
        return "liar"

    def is_always_max_size(self) -> bool:
        return False

    def answer_nameserver(self) -> str:
        return "liar"

    def answer_port(self) -> int:
        return 53

    async def async_query(self, request: Any, *args: object, **options: object) -> dns.message.Message:
        await trio.lowlevel.checkpoint()
        response = dns.message.make_response(request)
        response.set_rcode(self._rcode)
        for line in self._zone:
            name, ttl, _, kind, *data = line.replace("@", str(request.question[0].name)).split()
            response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, " ".join(data)))
        wire = response.to_wire()
        for where, junk, length in self._overwrite:
            at = 2 + math.floor(where * (len(wire) - 2))  # not the number, which makes it the answer to the question
            wire = wire[:at] + junk + wire[at + length :]
        answer = dns.message.from_wire(wire)
        if not request.is_response(answer):
            raise dns.exception.FormError("what dnspython would not take for an answer")
        return answer


def check_answer(zone: list[str], rcode: int, overwrite: Overwrite, family: int) -> int:
    liar: Any = Liar(zone, rcode, overwrite)
    resolver = trioconn.DNSResolver(nameservers=[liar], lifetime=0.01, hosts_file="/dev/null")
    clock = trio.testing.MockClock(autojump_threshold=0)
    try:
        results = trio.run(resolver.resolve, "a.test", 443, family, clock=clock)
    except trioconn.ResolveError as error:
        check_message(error)
        return 0
    good = [ip_address(result.address) for result in sanitised(results, family)]
    assert good == list(dict.fromkeys(ip_address(result.address) for result in results))
    for result in results:
        assert result.ttl is not None and 0 <= result.ttl < 2**31
    return len(results)


def test_what_is_not_written_over_is_read() -> None:
    assert [check_answer(zone, 0, [], socket.AF_UNSPEC) for zone in ZONES] == [3, 2, 0, 0, 2, 0, 0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(*arguments))
def test_addresses_or_a_typed_error(drawn: tuple[Any, ...]) -> None:
    check_answer(*drawn)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_messages(soak: Any) -> None:
    print(soak.fuzz(check_answer, *arguments), "messages")
