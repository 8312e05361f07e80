"""Measure everything, or the parts that are named, and print one table.

Exits with 1 if a limit is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from benchmarks import crowd, imports, room, tracking, transitions, workers
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
    "transitions": workers.transition_rows,
    "throughput": workers.throughput_rows,
    "publishing": lambda: [workers.publish_row()],
    "a hot client": crowd.rows,
    "bytes": lambda: [room.bytes_row()],
    "listings": room.listing_rows,
}


def main() -> int:
    """Measure and print; 1 if a limit is missed."""
    wanted = sys.argv[1:] or [*PARTS]
    if unknown := [name for name in wanted if name not in PARTS]:
        print(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    left_out: list[str] = []
    for name in wanted:
        measure = PARTS[name]
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
