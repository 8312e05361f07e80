"""Soak the stores, and print what each has shown; exit with 1 if anything was lost or doubled."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final

from tests.servers import ServerMissing

from .places import PLACES
from .trial import Outcome, run

#: Updates of a full run. Others are a few thousand.
FULL: Final = {"redis": 1_000_000}
FULL_OF_OTHERS: Final = 200_000
SHORT: Final = 4_000

COLUMNS: Final = (
    "store", "updates", "acknowledged", "ambiguous", "failed", "lost", "doubled", "else",
    "success", "ops/s", "minutes",
)  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Soak, print, and say by 1 that something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--store", action="append", choices=list(PLACES), help="default: all")
    parser.add_argument("--updates", type=int, help=f"to be acknowledged; default: {SHORT}")
    parser.add_argument("--full", action="store_true", help="1,000,000 on Redis, else 200,000")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args(words)
    print(f"seed {chosen.seed}")
    outcomes = []
    for store in chosen.store or list(PLACES):
        full = FULL.get(store, FULL_OF_OTHERS) if chosen.full else SHORT
        updates = chosen.updates or full
        try:
            outcome = run(
                store, PLACES[store], updates=updates, writers=chosen.writers, seed=chosen.seed,
                tell=_progress(store, updates),
            )  # fmt: skip
        except ServerMissing as exc:
            print(f"left out: {store}: {exc}")
            continue
        outcomes.append(outcome)
        print(row(outcome), flush=True)
    print("\n" + table(outcomes))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _progress(store: str, updates: int) -> Callable[[int], None]:
    began = said = time.monotonic()

    def tell(operations: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < 10.0:
            return
        said = now
        rate = operations / (now - began)
        left = max(updates * 8 / 7 - operations, 0) / rate if rate else 0.0
        print(
            f"{store}: about {operations:,} operations, {rate:,.0f}/s, {left / 60:.1f} min left",
            file=sys.stderr,
        )

    return tell


def row(outcome: Outcome) -> str:
    """One line of the table, with what is wrong below it."""
    lost = outcome.broken("lost", "gap")
    doubled = outcome.broken("doubled", "unique")
    cells = (
        outcome.store, f"{outcome.updates:,}", f"{outcome.acknowledged:,}",
        f"{outcome.ambiguous:,}", f"{outcome.failed:,}", f"{lost}", f"{doubled}",
        f"{len(outcome.violations) - lost - doubled}", "-" if outcome.share is None else f"{outcome.share:.2%}",
        f"{outcome.updates / outcome.seconds:,.0f}", f"{outcome.seconds / 60:.1f}",
    )  # fmt: skip
    lines = ["| " + " | ".join(cells) + " |"]
    lines += [f"  {violation}" for violation in outcome.violations[:20]]
    return "\n".join(lines)


def table(outcomes: list[Outcome]) -> str:
    """All outcomes; success is that outside the faults."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [row(outcome) for outcome in outcomes]
    for outcome in outcomes:
        faults = ", ".join(f"{name} {times}x" for name, times in sorted(outcome.faults.items()))
        lines.append(f"{outcome.store}: {outcome.durability}; {faults or 'replies lost'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
