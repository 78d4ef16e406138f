"""The scheduler's seed.

trio runs the tasks of one tick in a random order, so that nobody relies on any. The order is drawn from
``trio._core._run._r``, and tasks of a batch are put in order first if ``_ALLOW_DETERMINISTIC_SCHEDULING`` is set: the
two handles that trio has for Hypothesis, whose plugin sets the one and seeds the other. Outside of Hypothesis this does
the same. (Test directories cannot import from each other; `connector/sweep.py` has its own.)
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def fixed_order(seed: int) -> Iterator[None]:
    """Tasks are scheduled in an order that `seed` decides."""
    module: Any = sys.modules["trio._core._run"]
    old = module._ALLOW_DETERMINISTIC_SCHEDULING, module._r
    module._ALLOW_DETERMINISTIC_SCHEDULING, module._r = True, random.Random(seed)
    try:
        yield
    finally:
        module._ALLOW_DETERMINISTIC_SCHEDULING, module._r = old
