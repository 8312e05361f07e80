"""Measure everything and print one table; exit with 1 if a limit is missed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from benchmarks import imports, tracking, transitions
from benchmarks.comparison import Missing, Row, table

SQLITE: Final = "sqlite:///{folder}/states.db"

PARTS: Final[dict[str, Callable[[], Iterable[Row]]]] = {
    "a tracked loop": lambda: [tracking.loop_row()],
    "update()": lambda: [tracking.update_row()],
    "imports": imports.rows,
    "moves": lambda: map(
        partial(transitions.move_row, SQLITE),
        ["db+sqlite:///{folder}/results.db", "file://{folder}"],
    ),
    "moves in memory": lambda: [transitions.move_row("memory://moves", "cache+memory://")],
    "whole tasks": lambda: [transitions.task_row()],
}


def main() -> int:
    """Measure and print; 1 if a limit is missed."""
    rows: list[Row] = []
    left_out: list[str] = []
    for name, measure in PARTS.items():
        print(f"measuring {name} ...", file=sys.stderr)
        try:
            rows += measure()
        except Missing as missing:
            left_out.append(f"Left out: {name}: {missing}")
    print(table(rows))
    for line in left_out:
        print(line)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
