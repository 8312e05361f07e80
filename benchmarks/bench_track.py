"""What a tracked loop costs per item beside a bare loop and tqdm, and one call of ``update()``.

All are measured in one run, in turns, and the best round of each counts: what else the machine
does then touches all alike.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from tqdm import tqdm

from celery_statekit.reporter import Reporter, track

ROUNDS: Final = 5
#: Seconds between two snapshots, as a worker takes them.
INTERVAL: Final = 0.25
#: ``track()`` may cost this much of what tqdm costs.
LIMIT: Final = 0.3


@contextmanager
def watched() -> Iterator[Reporter]:
    """A reporter that another thread takes snapshots of meanwhile."""
    reporter, over = Reporter(), threading.Event()

    def watch() -> None:
        while not over.wait(INTERVAL):
            reporter.snapshot()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield reporter
    finally:
        over.set()
        thread.join()


def seconds(call: Callable[[], object]) -> float:
    """Seconds that ``call`` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def loop(rows: Iterable[int]) -> None:
    """Do nothing for each of ``rows``."""
    for _ in rows:
        pass


def bare_loop(items: int) -> float:
    """Seconds of a loop that nobody watches."""
    return seconds(lambda: loop(range(items)))


def tqdm_loop(items: int) -> float:
    """Seconds of a loop under a bar that is drawn nowhere."""
    return seconds(lambda: loop(tqdm(range(items), file=io.StringIO())))


def tracked_loop(items: int) -> float:
    """Seconds of a loop under ``track()``."""
    with watched() as reporter:
        return seconds(lambda: loop(track(reporter, range(items))))


def updates(items: int) -> float:
    """Seconds of a loop that calls ``update()`` for each item."""

    def run(reporter: Reporter) -> None:
        for _ in range(items):
            reporter.update()

    with watched() as reporter:
        return seconds(lambda: run(reporter))


def rows(items: int = 10_000_000) -> list[tuple[str, float, str]]:
    """What was measured: name, value and unit of each figure.

    Args:
        items: how many items each loop has.
    """
    measured = (bare_loop, tqdm_loop, tracked_loop, updates)
    best = dict.fromkeys(measured, float("inf"))
    for _ in range(ROUNDS):
        for measure in measured:
            best[measure] = min(best[measure], measure(items))
    bare = best[bare_loop]
    tqdm_more, track_more, update_more = (
        (best[measure] - bare) / items * 1e9 for measure in measured[1:]
    )
    return [
        ("bare loop", bare / items * 1e9, "ns per item"),
        ("tqdm, above the bare loop", tqdm_more, "ns per item"),
        ("track(), above the bare loop", track_more, "ns per item"),
        ("track() / tqdm", track_more / tqdm_more, f"limit {LIMIT}"),
        ("update(), above the bare loop", update_more, "ns per call"),
    ]


def main() -> None:
    """Measure and print a table."""
    for name, value, unit in rows():
        print(f"{name:30} {value:8.2f}  {unit}")


if __name__ == "__main__":
    main()
