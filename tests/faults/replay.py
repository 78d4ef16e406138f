"""The scheduler's seed, and the step at which a caller is cancelled.

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

import trio


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


class Cutter(trio.abc.Instrument):
    """Cancels what is inside `armed` before the n-th step of any task after its beginning.

    Attributes:
      steps: how many there were, inside.
      cut: whether it has.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._scope: trio.CancelScope | None = None
        self.steps = 0
        self.cut = False

    @contextmanager
    def armed(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as self._scope:
            yield self._scope
        self._scope = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._scope is not None:
            self.steps += 1
            if self.steps == self._n:
                self.cut = True
                self._scope.cancel()
