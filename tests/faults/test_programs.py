"""Random programs: a few hundred each time, a hundred thousand in the soak.

Hypothesis makes programs and shrinks those that find something; the soak draws them from a seed, which costs nothing
beside the run itself, and says which. What either finds is replayed by `run_program` from the bytes in its note.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .programs import HEAD, STEP, run_program

_STEPS = 60


@given(st.binary(min_size=HEAD, max_size=HEAD + STEP * _STEPS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_programs_of_hypothesis(data: bytes) -> None:
    run_program(data)


def drawn(seed: int, count: int) -> Counter[str]:
    """Run so many long programs, the n-th of them always the same for a seed."""
    found: Counter[str] = Counter()
    for number in range(count):
        source = random.Random(seed * 10_000_000 + number)
        found += run_program(source.randbytes(HEAD + STEP * source.randrange(5, _STEPS)))
    return found


def test_programs_reach_what_they_are_for() -> None:
    """Whoever finds nothing may have looked nowhere: the same programs each time, and what happened in them."""
    found = drawn(1, 250)
    for what, least in {
        "checked": 1000,
        "waited": 500,
        "fresh": 500,
        "reused": 20,
        "answered": 50,
        "closed": 50,
    }.items():
        assert found[what] >= least, found
    assert found["failed: connect"] and found["failed: resolve"]


def test_a_program_is_the_same_each_time() -> None:
    data = random.Random(5).randbytes(HEAD + STEP * _STEPS)
    assert run_program(data) == run_program(data)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_hundred_thousand_programs(soak: Any) -> None:
    print(drawn(soak.seed, soak.programs))
