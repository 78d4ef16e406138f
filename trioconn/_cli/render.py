"""The screen of a trace: a document in, lines of styled text out. Pure, so that golden files can hold it.

::

    target    https://example.com:443
    dns       example.com                2 addresses, 4 ms
    race                                 0 ms                                  312 ms
              2606:2800:220:1::1946      ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░          4 →  312  lost, no answer
              93.184.216.34                                         ░████       254 →  312  won
    tls       TLSv1.3, TLS_AES_128_GCM_SHA256, ALPN h2, 38 ms
    …

A row's bar is proportional: where it begins, how long each part took, where it ends.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from .hints import shown_dial
from .recording import Document
from .terminal import Style

Span: TypeAlias = tuple[str, Style | None]
Line: TypeAlias = list[Span]

WIDTH: Final = 100
_MARGIN: Final = 10
_ADDRESS: Final = 26
_LONGEST_ADDRESS: Final = 39
_ADDRESS_AND_BAR: Final = 58
_PARTS: Final[dict[str, tuple[str, Style]]] = {"connect": ("░", "blue"), "proxy": ("▒", "warn"), "tls": ("█", "good")}
_OUTCOMES: Final[dict[str, Style]] = {"won": "good", "failed": "bad", "lost": "dim", "unfinished": "warn"}


def screen(document: Document) -> list[Line]:
    """The whole screen."""
    lines: list[Line] = [*_head(document), *_dial(document, shown_dial(document))]
    if len(document["uses"]) > 1:
        lines += _uses(document)
    for hint in document["hints"]:
        lines += _wrapped("hint", hint, "warn")
    return lines


def plain(lines: Sequence[Line]) -> str:
    """`lines` without colour."""
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def _row(name: str, *spans: Span) -> Line:
    line: Line = [(f"{name:<{_MARGIN}}", "bold")]
    line += spans
    return line


def _wrapped(name: str, text: str, style: Style | None = None) -> Iterator[Line]:
    for number, line in enumerate(textwrap.wrap(text, WIDTH - _MARGIN, break_on_hyphens=False) or [""]):
        yield _row("" if number else name, (line, style))


def _head(document: Document) -> Iterator[Line]:
    target = document["target"]
    if target["route"].endswith("(forwarded)"):  # such a route leads to the proxy, whatever is behind it
        origin = re.split(r"[/?#]", target["url"].partition("://")[2], maxsplit=1)[0]
        scheme = target["url"].partition("://")[0]
        yield _row("target", (f"{scheme}://{origin}", None), (", forwarded: the proxy was not asked for it yet", "dim"))
    else:
        yield _row("target", (target["route"].split(" via ")[0], None))
    for number, proxy in enumerate(target["proxies"]):
        yield _row("" if number else "via", (proxy, None))
    if target["proxy_reason"] and target["proxies"]:
        yield _row("", (target["proxy_reason"], "dim"))
    trust = document["trust"]
    if trust["pin"]:
        also = "" if trust["authorities"] == "none" else f", and {trust['authorities']}"
        yield from _wrapped("trust", f"the pin {trust['pin']}{also}", "dim")
    elif not trust["verified"]:
        yield _row("trust", ("nothing is verified", "warn"))
    elif trust["authorities"] != "system":
        yield _row("trust", (f"the authorities in {trust['authorities']}", "dim"))


def _dial(document: Document, dial: Document) -> Iterator[Line]:
    yield from _dns(dial)
    yield from _race(dial)
    attempt = _shown_attempt(dial)
    for step in dial["steps"]:
        if step["attempt"] == attempt:
            yield from _step(document, dial, step)
    if dial["error"] is not None:
        error = dial["error"]
        where = ""
        if error["stage"]:
            where = f" at stage {error['stage']}, with {_hop(document, error['hop'])}"
        yield _row("failed", (f"{error['type']}{where}", "bad"))
        yield from _wrapped("", error["message"])
    if dial["seconds"] is not None:
        yield _row("total", (_total(dial), "bold"))


def _hop(document: Document, hop: int) -> str:
    return document["target"]["proxies"][hop] if hop >= 0 else "the target"


def _dns(dial: Document) -> Iterator[Line]:
    for lookup in dial["lookups"]:
        if lookup["ended"] is None:
            yield _row("dns", (f"{lookup['host']:<{_ADDRESS}} ", None), ("no answer", "bad"))
            continue
        took = _ms(lookup["ended"] - lookup["began"])
        count = len(lookup["addresses"])
        if lookup["error"]:
            yield _row("dns", (f"{lookup['host']:<{_ADDRESS}} ", None), (f"nothing found, {took}", "bad"))
        else:
            found = f"{count} address{'es' if count != 1 else ''}, {took}"
            yield _row("dns", (f"{lookup['host']:<{_ADDRESS}} ", None), (found, None))
    if dial["cached"] and not dial["lookups"]:
        yield _row("dns", ("the addresses were known", "dim"))
    if dial["denied"]:
        yield from _wrapped("denied", f"by the address policy: {', '.join(dial['denied'])}", "warn")


def _race(dial: Document) -> Iterator[Line]:
    attempts = dial["attempts"]
    if not attempts:
        return
    wide = min(_LONGEST_ADDRESS, max(_ADDRESS, *(len(attempt["address"]) for attempt in attempts)))
    end = max([dial["seconds"] or 0.0, *(_end(attempt, dial) for attempt in attempts)]) or 1e-6
    digits = 0 if end >= 0.02 else 1
    right = _ms(end)
    scale = f"{'0 ms':<{_ADDRESS_AND_BAR - wide - len(right)}}{right}"
    yield _row("race" if len(attempts) > 1 else "connect", (" " * (wide + 1), None), (scale, "dim"))
    for attempt in attempts:
        address = attempt["address"]
        if len(address) > wide:  # a path, or an IPv6 address with a long zone
            address = "…" + address[1 - wide :]
        times = f" {attempt['began'] * 1000:>6.{digits}f} → {_end(attempt, dial) * 1000:>5.{digits}f}  "
        bar = _bar(dial, attempt, end, _ADDRESS_AND_BAR - wide)
        bar.append((times, "dim"))
        bar.append((_outcome(dial, attempt), _OUTCOMES[attempt["outcome"]]))
        yield _row("", (f"{address:<{wide}} ", None), *bar)
    used = {part for attempt in attempts for part, _, _ in _parts(dial, attempt)}
    legend: Line = _row("", (" " * (wide + 1), None))
    for part, (character, style) in _PARTS.items():
        if part in used:
            legend.append((character, style))
            legend.append((f" {part}  ", "dim"))
    yield legend


def _end(attempt: Document, dial: Document) -> float:
    ended: float | None = attempt["ended"]
    return float(dial["seconds"] or attempt["began"]) if ended is None else ended


def _parts(dial: Document, attempt: Document) -> list[tuple[str, float, float]]:
    """What an attempt was doing, and from when to when."""
    parts: list[tuple[str, float, float]] = []
    began = attempt["began"]
    for progress in attempt["progress"]:
        parts.append((progress["stage"], began, progress["at"]))
        began = progress["at"]
    end = _end(attempt, dial)
    if attempt["outcome"] != "won" and (end > began or not parts):
        under_way = [s for s in dial["steps"] if s["attempt"] == attempt["index"] and s["began"] >= began]
        doing = parts[-1][0] if parts else "connect"
        if under_way:
            doing = "tls" if under_way[-1]["kind"] == "tls" else "proxy"
        parts.append((doing, began, end))
    return parts


def _bar(dial: Document, attempt: Document, end: float, width: int) -> Line:
    """One character for each part of the time, at least one for each thing that was done."""
    spans: Line = []
    column = 0
    for part, began, ended in _parts(dial, attempt):
        start = min(width - 1, max(column, round(began / end * width)))
        stop = min(width, max(start + 1, round(ended / end * width)))
        if start > column:
            spans.append((" " * (start - column), None))
        character, style = _PARTS.get(part, ("░", "dim"))
        spans.append((character * (stop - start), style))
        column = stop
    spans.append((" " * (width - column), None))
    return spans


def _outcome(dial: Document, attempt: Document) -> str:
    outcome = attempt["outcome"]
    if outcome == "failed":
        return _short(attempt["error"])
    if outcome == "lost":
        doing = _parts(dial, attempt)[-1][0] if attempt["progress"] else "connect"
        silent = {"connect": "no answer", "tls": "mute: no TLS answer", "proxy": "mute proxy"}[doing]
        return f"lost, {silent}" if dial["outcome"] == "connected" else silent
    return {"won": "won", "unfinished": "not finished"}[outcome]


def _short(error: Document) -> str:
    """An error in a few words; the whole message stands below."""
    if "verify_code" in error:
        return "certificate refused"
    if error["stage"] == "pin":
        return "not the pinned one"
    if error.get("status"):
        return f"refused: {error['status']}"
    if "refused" in error["message"].lower():
        return "refused"
    if "unreachable" in error["message"].lower():
        return "unreachable"
    return f"failed at {error['stage'] or error['type']}"


def _shown_attempt(dial: Document) -> int:
    """Whose steps are told one by one: those of the winner, else of the last that had any."""
    for attempt in dial["attempts"]:
        if attempt["outcome"] == "won":
            return int(attempt["index"])
    tried: list[int] = [step["attempt"] for step in dial["steps"]]
    return tried[-1] if tried else 0


def _step(document: Document, dial: Document, step: Document) -> Iterator[Line]:
    took = "no answer" if step["ended"] is None else _ms(step["ended"] - step["began"])
    if step["kind"] == "tunnel":
        name = "socks" if step["peer"].startswith("socks") else "tunnel"
        status = "" if step["status"] is None else f"{step['status']}, "
        if name == "socks" and step["status"] == 0:
            status = "granted, "
        style: Style = "bad" if step["error"] or step["ended"] is None else "good"
        yield _row(name, (f"{step['peer']} to {step['target']}: ", None), (f"{status}{took}", style))
        return
    peer = "" if step["hop"] < 0 else f" with {step['peer']}"
    if step["version"] is not None:
        said = [step["version"], step["cipher"], f"ALPN {step['alpn'] or 'none'}"]
        if step["resumed"]:
            said.append("session resumed")
        yield _row("tls", (", ".join([*said, took]) + peer, None))
    else:
        yield _row("tls", (f"failed after {took}{peer}" if step["ended"] is not None else f"no answer{peer}", "bad"))
    certificate = step["certificate"]
    if certificate is None:
        certificate = next((one for one in document["presented"] if one["hop"] == step["hop"]), None)
        if certificate is not None:
            yield _row("", ("its certificate, as a look without verification shows it:", "dim"))
    if certificate is not None:
        yield from _certificate(certificate)


def _certificate(certificate: Document) -> Iterator[Line]:
    if certificate.get("names"):
        yield from _wrapped("  names", ", ".join(certificate["names"]))
    if certificate.get("subject"):
        yield from _wrapped("  subject", certificate["subject"])
    if certificate.get("issuer"):
        own = " (its own)" if certificate["issuer"] == certificate["subject"] else ""
        yield from _wrapped("  issuer", certificate["issuer"] + own)
    if "days_left" in certificate:
        days = certificate["days_left"]
        left = f"{days} days left" if days >= 0 else f"ended {-days} days ago"
        until = certificate["not_after"].partition("T")[0]
        yield _row("  until", (f"{until}, {left}", "bad" if days < 0 else "warn" if days < 21 else None))
    yield _row("  sha256", (certificate["sha256"], "blue"))
    if certificate.get("undecoded"):
        yield _row("", (certificate["undecoded"], "dim"))


def _total(dial: Document) -> str:
    if dial["outcome"] == "connected":
        return f"{_ms(dial['seconds'])}, connected"
    words = {"timed out": "then cut off by the timeout", "failed": "then it failed", "aborted": "then given up"}
    return f"{_ms(dial['seconds'])}, {words[dial['outcome']]}"


def _uses(document: Document) -> Iterator[Line]:
    for use in document["uses"]:
        name = "connects" if use["use"] == 1 else ""
        if use["error"] is not None:
            yield _row(name, (f"{use['use']:>3}  ", "dim"), (use["why"], "bad"))
            continue
        what = f"reused #{use['connection']}" if use["reused"] else f"new    #{use['connection']}"
        idle = "" if use["idle"] is None else f", for {_ms(use['idle'])}"
        yield _row(
            name,
            (f"{use['use']:>3}  ", "dim"),
            (f"{what:<12}", "good" if use["reused"] else None),
            (f"{_ms(use['seconds']):>9}  ", None),
            (use["why"] + idle, "dim"),
        )


def _ms(seconds: float) -> str:
    value = seconds * 1000
    if value >= 9999.5:
        return f"{seconds:.1f} s"
    digits = 0 if value >= 10 else 1 if value >= 0.1 else 2
    return f"{value:.{digits}f} ms"


def as_json(document: dict[str, Any]) -> str:
    """The document for machines."""
    import json

    return json.dumps(document, indent=2)  # in ASCII: no console's encoding can spoil it
