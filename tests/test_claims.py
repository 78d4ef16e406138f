"""Every case that `cases.toml` names is claimed by a test, or cannot happen here, and then it says why.

Markers are read from the sources, so that a skipped test, or one of a platform that is not this one, claims as well.
"""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
CASES: dict[str, Any] = tomllib.loads((TESTS / "cases.toml").read_text(encoding="utf-8"))
KINDS = ("case", "security", "aiohttp")


@cache
def claims() -> dict[str, dict[Any, list[str]]]:
    """By kind and name: the places of its markers."""
    found: dict[str, dict[Any, list[str]]] = {kind: defaultdict(list) for kind in KINDS}
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS:
                of = node.func.value
                if isinstance(of, ast.Attribute) and of.attr == "mark":
                    for argument in node.args:
                        assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}: write the name itself"
                        found[node.func.attr][argument.value].append(f"{path.name}:{node.lineno}")
    return found


def named(kind: str) -> list[list[Any]]:
    """The cases of a kind, each with all the names it goes by."""
    if kind == "security":
        return [[int(number)] for number in CASES["security"]]
    entries = CASES["cases" if kind == "case" else kind]
    return [entry if isinstance(entry, list) else [entry] for entry in entries]


def impossible(kind: str) -> dict[Any, str]:
    """What cannot happen here, and why."""
    reasons: dict[str, str] = CASES["impossible"]["cases" if kind == "case" else kind]
    return {int(name) if kind == "security" else name: why for name, why in reasons.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_claimed_or_cannot_happen(kind: str) -> None:
    answered = claims()[kind].keys() | impossible(kind).keys()
    assert [names for names in named(kind) if answered.isdisjoint(names)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_happen_says_why(kind: str) -> None:
    for name, why in impossible(kind).items():
        assert name in {first for first, *_ in named(kind)}, f"{name} is not on the list"
        assert len(why.split()) >= 4, name


@pytest.mark.parametrize("kind", KINDS)
def test_no_marker_is_of_an_unknown_case(kind: str) -> None:
    known = {name for names in named(kind) for name in names}
    unknown = {name: places for name, places in claims()[kind].items() if name not in known}
    if kind == "case":  # tests may name further threads, of the same shape
        assert not [name for name in unknown if not (isinstance(name, str) and name.partition("#")[2].isdigit())]
    else:
        assert not unknown


def test_there_are_as_many_as_there_should_be() -> None:
    """An empty list would claim everything."""
    assert [len(named(kind)) for kind in KINDS] == [75, 76, 181]
