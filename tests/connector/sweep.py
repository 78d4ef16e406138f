"""Cut a scenario off at its n-th step, for every n.

trio schedules tasks in batches of random order. Here the order is fixed by a seed, so that the n-th step of a run is
the n-th step of the next one; several seeds see several orders.
"""

from __future__ import annotations

import gc
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any

import trio
import trio.testing

import trioconn

PACKAGE = trioconn.__path__[0]
_MOST_STEPS = 2000


class Cutter(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task after `armed`."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.scope: trio.CancelScope | None = None
        self.cut = False

    @contextmanager
    def armed(self) -> Iterator[trio.CancelScope]:
        """What is inside is cut off."""
        with trio.CancelScope() as self.scope:
            yield self.scope
        self.scope = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.scope is not None:
            self.left -= 1
            if self.left == 0:
                self.cut = True
                self.scope.cancel()


@contextmanager
def fixed_order(seed: int) -> Iterator[None]:
    """Tasks are scheduled in an order that the seed decides."""
    module: Any = sys.modules["trio._core._run"]
    old = module._ALLOW_DETERMINISTIC_SCHEDULING, module._r
    module._ALLOW_DETERMINISTIC_SCHEDULING, module._r = True, random.Random(seed)
    try:
        yield
    finally:
        module._ALLOW_DETERMINISTIC_SCHEDULING, module._r = old


def cancel_everywhere(
    scenario: Callable[[Cutter], Awaitable[None]],
    *,
    seeds: tuple[int, ...] = (1, 2, 3),
    virtual: bool = True,
) -> int:
    """Run `scenario` again and again, cut off one step later each time, until it ends uncut. Returns how often.

    The scenario enters ``cutter.armed()`` around what is cut off, and checks the rest itself.
    """
    runs = 0
    gc.collect()
    gc.disable()
    try:
        for seed in seeds:
            for n in count(1):
                assert n < _MOST_STEPS, "the scenario does not end"
                cutter = Cutter(n)
                clock = trio.testing.MockClock(autojump_threshold=0) if virtual else None
                with fixed_order(seed):
                    try:
                        trio.run(scenario, cutter, clock=clock, instruments=[cutter])
                    except BaseException as error:
                        error.add_note(f"cut off at step {n} with seed {seed}")
                        raise
                runs += 1
                if not cutter.cut:
                    break
    finally:
        gc.enable()
    assert runs > len(seeds) * 3, "there was hardly anything to cut"
    return runs


def interrupt_everywhere(scenario: Callable[[], Awaitable[None]], check: Callable[[], None], *, stride: int) -> int:
    """Run `scenario` with a KeyboardInterrupt at every `stride`-th line that it executes in the package.

    The signal is raised at the line itself, as by a user, so it also hits code that is not protected; trio's handler
    decides. Returns how often the scenario was interrupted.
    """
    hits = left = 0
    where: list[str] = []

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE) or "testing" in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                signal.raise_signal(signal.SIGINT)
        return trace

    for n in count(1, stride):
        left = n
        where.clear()
        old = sys.gettrace()
        try:
            with fixed_order(n):
                sys.settrace(trace)
                try:
                    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
                except KeyboardInterrupt:
                    hits += 1
                except BaseExceptionGroup as group:  # of the scenario's own nurseries
                    if group.split(KeyboardInterrupt)[1] is not None:
                        raise
                    hits += 1
                finally:
                    sys.settrace(old)
            check()
        except BaseException as error:
            error.add_note(f"interrupted at line number {n}: {where}")
            raise
        if left > 0:
            break
    return hits
