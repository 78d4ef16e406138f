"""Delays packets by what their destination address says.

Packets read from the tun device ``slow0`` (client namespace) are written to ``slow1`` (server namespace) after a delay
that is encoded in the address; the first SYNs of each connection to the "loss" addresses are dropped. Kernels without
``sch_netem`` need this.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import select
import struct
import sys
import time

CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454CA, 1, 0x1000
LONGEST_RUN = 3600.0  # seconds: it ends by itself


def open_tun(namespace: str, device: str) -> int:
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, CLONE_NEWNET):  # os.setns is new in 3.12
        raise OSError(ctypes.get_errno(), "setns")
    os.close(handle)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def policy(packet: bytes) -> tuple[int, int, tuple[bytes, bytes, bytes], bool]:
    """Delay in ms, how many SYNs to drop, the flow, and whether this is a SYN."""
    if packet[0] >> 4 == 4:
        above = packet[(packet[0] & 15) * 4 :]
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
        if destination[0] == 203:
            delay, drops = 1, 0
        elif destination[1] == 19:
            delay, drops = 0, destination[3]
        else:
            delay, drops = destination[2] * 256 + destination[3], 0
    else:
        above = packet[40:]
        protocol, source, destination = packet[6], packet[8:24], packet[24:40]
        # ::400 means 400
        number = 1 if destination[4:6] == b"\x00\x0e" else int(f"{int.from_bytes(destination[8:16], 'big'):x}")
        delay, drops = (0, number) if destination[4:6] == b"\x10\x55" else (number, 0)
    is_syn = protocol == 6 and len(above) > 13 and (above[13] & 0x12) == 0x02
    return delay, drops, (source, destination, above[:4]), is_syn


def main() -> None:
    client, server = open_tun(sys.argv[1], "slow0"), open_tun(sys.argv[2], "slow1")
    queue: list[tuple[float, int, bytes]] = []
    numbers = itertools.count()
    syns: dict[tuple[bytes, bytes, bytes], int] = {}
    poller = select.poll()
    poller.register(client, select.POLLIN)
    poller.register(server, select.POLLIN)
    end = time.monotonic() + LONGEST_RUN
    while (now := time.monotonic()) < end:
        while queue and queue[0][0] <= now:
            os.write(server, heapq.heappop(queue)[2])
            now = time.monotonic()
        poller.poll(max(0.0, (queue[0][0] - now) * 1000) if queue else 1000)
        for fd in (client, server):
            while True:
                try:
                    packet = os.read(fd, 65536)
                except BlockingIOError:
                    break
                if fd == server or len(packet) < 20:
                    continue  # router solicitations and the like
                if packet[0] >> 4 == 6 and packet[24] != 0x20:
                    continue
                delay, drops, flow, is_syn = policy(packet)
                if drops and is_syn:
                    syns[flow] = syns.get(flow, 0) + 1
                    if syns[flow] <= drops:
                        continue
                heapq.heappush(queue, (time.monotonic() + delay / 1000, next(numbers), packet))


main()
