"""A DNS server on 127.0.0.1:53 of the client namespace whose behaviour is in the first label of the name.

``aaaa400-dual.lab.test``: the AAAA answer is 400 ms late, A comes at once. ``aaaadrop``: AAAA is never answered.
``a400``, ``aaaa20``, … likewise. ``dead``: the A address is blackholed. Ends by itself.
"""

from __future__ import annotations

import re
import socket
import threading
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

LONGEST_RUN = 3600.0
SETS = {
    "dual": {"A": ["203.0.113.1"], "AAAA": ["2001:db8:a::1"]},
    "dead": {"A": ["203.0.113.33"], "AAAA": ["2001:db8:a::1"]},
}


def answer(data: bytes) -> tuple[bytes | None, float]:
    query = dns.message.from_wire(data)
    question = query.question[0]
    kind = dns.rdatatype.to_text(question.rdtype)
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    *acts, name = question.name.to_text().lower().partition(".")[0].split("-")
    delay = 0.0
    for act in acts:
        match = re.fullmatch(r"(aaaa|a)(\d+|drop)", act)
        if match is not None and match[1].upper() == kind:
            if match[2] == "drop":
                return None, 0
            delay = int(match[2]) / 1000
    addresses = SETS.get(name)
    if addresses is None:
        response.set_rcode(dns.rcode.NXDOMAIN)
    elif kind in addresses:
        response.answer.append(dns.rrset.from_text(question.name, 1, "IN", kind, *addresses[kind]))
    return response.to_wire(), delay


def main() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 53))
    sock.settimeout(1)
    end = time.monotonic() + LONGEST_RUN
    while time.monotonic() < end:
        try:
            data, peer = sock.recvfrom(4096)
        except TimeoutError:
            continue
        wire, delay = answer(data)
        if wire is not None:
            threading.Timer(delay, sock.sendto, (wire, peer)).start()


main()
