"""What a tracked loop costs per item, beside a bare loop and tqdm; the best of five rounds each."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from typing import Final

from celery import Celery
from tqdm import tqdm

from celery_statekit import StatefulTask, track

ITEMS: Final = 1_000_000
ROUNDS: Final = 5

app = Celery("bench", broker="memory://", backend="cache+memory://", set_as_current=False)


def nanoseconds(wrap: Callable[[Iterable[int]], Iterable[int]]) -> float:
    """Nanoseconds per item of a loop over what ``wrap`` makes of a range."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in wrap(range(ITEMS)):
            pass
        best = min(best, time.perf_counter() - began)
    return best / ITEMS * 1e9


@app.task(bind=True, base=StatefulTask, name="bench.tracked")
def tracked(self: StatefulTask) -> float:
    """The same inside a running task, whose progress is written meanwhile."""
    return nanoseconds(self.track)


def main() -> None:
    """Measure and print."""
    bare = nanoseconds(lambda items: items)
    print(f"bare loop                   {bare:7.1f} ns an item")
    for name, measured in (
        ("track() outside a task", nanoseconds(track)),
        ("self.track() in a task", tracked.apply().get()),
        ("tqdm", nanoseconds(lambda items: tqdm(items, file=io.StringIO()))),
    ):
        print(f"{name:26}  {measured:7.1f} ns an item, {measured - bare:7.1f} more")


if __name__ == "__main__":
    main()
