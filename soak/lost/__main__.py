"""Kill, stop and cut off workers, again and again; exit with 1 if anything was lost or doubled."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Final

from tests.servers import ServerMissing

from .scenarios import SCENARIOS, Outcome, run
from .yard import SHAPES

#: Trials of each scenario.
FULL: Final = 100
SHORT: Final = 4

COLUMNS: Final = (
    "scenario", "trials", "refused", "takeovers", "LOST median s", "max s", "tasks lost",
    "ends doubled", "steps doubled", "else",
)  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Break, print, and say by 1 that something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m soak.lost", description=__doc__)
    names = [name.replace(" ", "-") for name in SCENARIOS]
    parser.add_argument("--scenario", action="append", choices=names, help="default: all")
    parser.add_argument("--trials", type=int, help=f"of each scenario; default: {SHORT}")
    parser.add_argument("--full", action="store_true", help=f"{FULL} trials of each")
    chosen = parser.parse_args(words)
    trials = chosen.trials or (FULL if chosen.full else SHORT)
    outcomes = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name in chosen.scenario or names:
        try:
            outcome = soak(name.replace("-", " "), trials)
        except ServerMissing as exc:
            print(f"left out: {name}: {exc}")
            continue
        outcomes.append(outcome)
        print(row(outcome), flush=True)
    print(row(together(outcomes)))
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def soak(name: str, trials: int) -> Outcome:
    """Round after round of a scenario, until it has had so many trials."""
    outcomes = [Outcome(name)]
    number, began = 0, time.monotonic()
    while (done := sum(outcome.trials for outcome in outcomes)) < trials:
        try:
            outcomes.append(run(name, number, SHAPES))
        except (TimeoutError, RuntimeError, AssertionError) as exc:
            # What did not happen is a fault like any other, and no trial of it is forgotten.
            outcomes.append(Outcome(name, len(SHAPES), faults=[f"task lost: {exc}"]))
        number += 1
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: {done} trials, {minutes:.1f} min", file=sys.stderr)
    return together(outcomes, name)


def together(outcomes: list[Outcome], name: str = "all") -> Outcome:
    """What several outcomes amount to."""
    return Outcome(
        name,
        sum(outcome.trials for outcome in outcomes),
        sum(outcome.fenced for outcome in outcomes),
        sum(outcome.takeovers for outcome in outcomes),
        [truth for outcome in outcomes for truth in outcome.truths],
        [fault for outcome in outcomes for fault in outcome.faults],
    )


def row(outcome: Outcome) -> str:
    """One line of the table, with what is wrong below it."""
    truths = outcome.truths
    lost = outcome.broken("task lost", "step lost")
    ends = outcome.broken("doubled end")
    steps = outcome.broken("doubled step")
    cells = (
        outcome.scenario, outcome.trials, outcome.fenced, outcome.takeovers,
        f"{statistics.median(truths):.1f}" if truths else "-",
        f"{max(truths):.1f}" if truths else "-",
        lost, ends, steps, len(outcome.faults) - lost - ends - steps,
    )  # fmt: skip
    lines = ["| " + " | ".join(map(str, cells)) + " |"]
    if outcome.scenario != "all":
        lines += [f"  {fault}" for fault in outcome.faults[:20]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
