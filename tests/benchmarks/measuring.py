"""Measuring side by side: what is compared runs in turn within each round, so that a noisy moment hits all of it.

A figure is the median of the rounds, a ratio the median of the rounds' own ratios. Where the cost itself is looked for
(microseconds without any waiting) the best round of each side is taken instead: noise only ever adds. What does not
wait is measured in CPU time of the thread, which other programs cannot take away.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

OURS = "trioconn"


@dataclass
class Comparison:
    """One line of the report: our figure beside others.

    Attributes:
      item: the heading that it belongs to.
      name: what was measured.
      unit: of the samples.
      samples: contender to one figure per round, ours first.
      against: the contender that the target is about, or None.
      target: the ratio of ours to that one, or None.
      at_most: whether the target is an upper bound.
      best: whether the best rounds are compared, not the medians.
    """

    item: str
    name: str
    unit: str
    samples: Mapping[str, list[float]]
    against: str | None = None
    target: float | None = None
    at_most: bool = True
    best: bool = False

    def figure(self, contender: str) -> float:
        """The best or the median round of `contender`."""
        samples = self.samples[contender]
        return min(samples) if self.best else statistics.median(samples)

    def ratios(self, against: str) -> list[float]:
        """Ours to theirs, round by round."""
        return [ours / theirs for ours, theirs in zip(self.samples[OURS], self.samples[against], strict=True)]

    def ratio(self) -> float | None:
        """What is held against the target."""
        if self.against is None:
            return None
        if self.best:
            return self.figure(OURS) / self.figure(self.against)
        return statistics.median(self.ratios(self.against))

    def value(self) -> float:
        """The ratio, or our figure where there is nobody to compare with."""
        ratio = self.ratio()
        return self.figure(OURS) if ratio is None else ratio

    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value() <= self.target if self.at_most else self.value() >= self.target


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Call all of them in each round, in an order that rotates, and collect what they return."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(-warm_up, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            figure = contenders[name]()
            if turn >= 0:
                samples[name].append(figure)
    return samples


def spread(samples: list[float]) -> tuple[float, float]:
    """The quartiles: between them lies the middle half of the rounds."""
    if len(samples) < 2:
        return samples[0], samples[0]
    quartiles = statistics.quantiles(samples, n=4, method="inclusive")
    return quartiles[0], quartiles[2]
