"""What to do about what a trace has found: a line each, the most telling first. Pure: a document in, sentences out."""

from __future__ import annotations

from typing import Any, Final

_SLOW: Final = 0.1  # seconds lost to an address that did not win before it is worth a hint
_SOON: Final = 21  # days
_NAMES: Final = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, …_IP_ADDRESS_MISMATCH
_DATES: Final = (9, 10)  # not yet valid, expired
_ISSUERS: Final = (18, 19, 20, 21)


def hints(document: dict[str, Any]) -> list[str]:
    """The hints for `document`, which lacks only them."""
    dial = shown_dial(document)
    error = dial["error"]
    found = [] if error is None else _about_failure(document, dial, error)
    return found + _about_race(dial) + _about_certificates(dial)


def shown_dial(document: dict[str, Any]) -> dict[str, Any]:
    """The dial that is told about: the first that failed, else the first. There is one: nothing was idle at first."""
    dials: list[dict[str, Any]] = document["dials"]
    return next((dial for dial in dials if dial["error"] is not None), dials[0])


def _about_failure(document: dict[str, Any], dial: dict[str, Any], error: dict[str, Any]) -> list[str]:
    stage, proxied = error["stage"], error["hop"] is not None and error["hop"] >= 0
    if stage == "resolve":
        return ["is the name spelled right? `doctor URL` shows what the resolver does with it"]
    if "verify_code" in error:
        return _about_verification(document, error)
    if stage == "pin":
        return [
            "if the server's certificate was renewed, take the new SHA-256 above as the pin; if not, do not connect"
        ]
    if error.get("status") == 407:
        return ["give the proxy a login: --proxy http://user:password@host:port"]
    if error.get("status"):
        return [f"the proxy was reached and said no ({error['status']}): ask whoever runs it, or take another one"]
    if stage == "tls" and "does not speak TLS" in error["message"]:
        return ["is this the right port? If it speaks plain HTTP: http:// instead of https://"]
    if dial["outcome"] == "timed out":
        silent = sorted({attempt["address"] for attempt in dial["attempts"] if attempt["outcome"] == "lost"})
        where = f" from {', '.join(silent)}" if silent else ""
        return {
            "connect": [f"no answer at all{where}: a firewall that drops, or a route that leads nowhere"],
            "tls": ["the connection stands, but nothing comes back: a mute server, or something in between"],
            "proxy": ["the proxy takes connections and does not answer"],
        }.get(stage or "", [])
    if stage == "connect" and "refused" in error["message"].lower():
        what = "the proxy" if proxied else "the server"
        return [f"nothing listens there: is {what} running, and is this its port?"]
    return []


def _about_verification(document: dict[str, Any], error: dict[str, Any]) -> list[str]:
    code = error["verify_code"]
    shown = _presented(document, error["hop"])
    if code in _NAMES:
        names: list[str] = shown.get("names", [])
        return (
            [f"it is for {', '.join(names)}: use one of these names, or give the server the right certificate"]
            if names
            else []
        )
    if code in _DATES:
        days: int | None = shown.get("days_left")
        return [f"it ended {-days} days ago: renew it"] if days is not None and days < 0 else []
    if code in _ISSUERS:
        option = "--cacert" if error["hop"] < 0 else "--proxy-cacert"
        pin = f", or --pin {shown['sha256']}" if shown and error["hop"] < 0 else ""
        return [f"if you know the authority: {option} FILE{pin} (after comparing it with the server's)"]
    return []


def _presented(document: dict[str, Any], hop: int) -> dict[str, Any]:
    presented: list[dict[str, Any]] = document["presented"]
    unseen: dict[str, Any] = {}
    return next((certificate for certificate in presented if certificate["hop"] == hop), unseen)


def _about_race(dial: dict[str, Any]) -> list[str]:
    """About addresses that came before the one that won, and cost time."""
    winner = next((attempt for attempt in dial["attempts"] if attempt["outcome"] == "won"), None)
    if winner is None:
        return []
    before = [attempt for attempt in dial["attempts"] if attempt["began"] < winner["began"]]
    if not before or winner["began"] - before[0]["began"] < _SLOW:
        return []
    lost = round((winner["began"] - before[0]["began"]) * 1000)
    mute = [attempt["address"] for attempt in before if attempt["outcome"] == "lost" and attempt["progress"]]
    if mute:
        verb = "take connections and then say" if len(mute) > 1 else "takes connections and then says"
        return [f"{', '.join(mute)} {verb} nothing: {lost} ms lost on the first connection to this host"]
    if {attempt["family"] for attempt in before} == {"IPv6"} and winner["family"] == "IPv4":
        return [f"IPv6 does not work to this host: {lost} ms lost on the first connection; repair its route, or use -4"]
    dead = ", ".join(attempt["address"] for attempt in before)
    return [f"{dead} did not answer in time: {lost} ms lost on the first connection to this host"]


def _about_certificates(dial: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for step in dial["steps"]:
        certificate: dict[str, Any] | None = step.get("certificate")
        days: int | None = None if certificate is None else certificate.get("days_left")
        if days is not None and 0 <= days < _SOON:
            found.append(f"the certificate of {step['peer']} ends in {days} days")
    return found
