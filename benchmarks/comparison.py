"""One figure of ours beside one of a rival, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: Seconds of one piece of work, measured once.
Measure = Callable[[], float]


class Missing(Exception):
    """Raised when what a rival needs is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one thing costs here and there."""

    what: str
    ours: float
    rival: str
    theirs: float
    #: The highest ratio that is good enough; None: any.
    limit: float | None = None
    #: Of both costs; "s": seconds.
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """How many times the rival's cost ours is."""
        return self.ours / self.theirs

    @property
    def kept(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.limit is None or self.ratio <= self.limit


def in_turns(*measures: Measure, rounds: int) -> list[float]:
    """The best of ``rounds`` of each, measured in turns: noise touches all alike."""
    best = [float("inf")] * len(measures)
    for _ in range(rounds):
        best = [min(so_far, measure()) for so_far, measure in zip(best, measures, strict=True)]
    return best


def each(times: int, work: Callable[[], object]) -> Measure:
    """Seconds that one call of ``work`` takes, on average over ``times``."""

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times

    return measure


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    lines = [("what", "here", "rival", "there", "ratio", "limit"), ("---",) * 6]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:g} {'kept' if row.kept else 'MISSED'}"
        cost, price = (shown(value, row.unit) for value in (row.ours, row.theirs))
        lines.append((row.what, cost, row.rival, price, f"{row.ratio:.2g}", limit))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float, unit: str) -> str:
    """``value`` with its unit."""
    return duration(value) if unit == "s" else f"{value:,.0f} {unit}".strip()


def duration(seconds: float) -> str:
    """``seconds`` as people say it: ``1.2 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
