"""Accepts on 8080 (plain) and 8443 (TLS, silent on the "mute" addresses), IPv4 and IPv6. Ends by itself."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
import time
from pathlib import Path

import trustme

LONGEST_RUN = 3600.0
MUTE = [ipaddress.ip_network(text) for text in ("2001:db8:7::/64", "203.0.113.160/27")]

authority = trustme.CA()
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
authority.issue_cert("srv.lab.test", "*.lab.test").configure_cert(context)
(Path(os.environ["LAB_RUN"]) / "ca.pem").write_bytes(authority.cert_pem.bytes())


def handle(connection: socket.socket, *, tls: bool) -> None:
    try:
        me = ipaddress.ip_address(connection.getsockname()[0])
        connection.settimeout(30)
        if tls:
            if any(me in network for network in MUTE if network.version == me.version):
                while connection.recv(4096):
                    pass
                return
            connection = context.wrap_socket(connection, server_side=True)
        while connection.recv(4096):
            pass
    except OSError:
        pass
    finally:
        connection.close()


def serve(family: int, port: int, *, tls: bool) -> None:
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    listener.listen(4096)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=handle, args=(connection,), kwargs={"tls": tls}, daemon=True).start()


for family in (socket.AF_INET, socket.AF_INET6):
    for port, tls in ((8080, False), (8443, True)):
        threading.Thread(target=serve, args=(family, port), kwargs={"tls": tls}, daemon=True).start()
time.sleep(LONGEST_RUN)
