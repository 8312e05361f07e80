"""One client that many processes write: who waits how long, and what a loop that loses writes does."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Final

from benchmarks.comparison import Row
from benchmarks.server import connect, empty_database
from celery_statekit import Clients, ClientState
from celery_statekit.stores import open_store

WRITERS: Final = (8, 32)
#: Updates of each writer.
UPDATES: Final = {8: 100, 32: 25}
#: What the slowest update of all may take.
ATTEMPTS: Final = 5
SECONDS: Final = 1.0


class Counter(ClientState):
    """A client that everybody counts in."""

    count: int = 0


@dataclass(frozen=True)
class Crowd:
    """What many writers of one client saw."""

    #: Seconds of each update.
    seconds: list[float]
    #: How often each was tried.
    attempts: list[int]
    #: What stands there in the end.
    count: int
    #: Seconds for all of them.
    spent: float

    @property
    def lost(self) -> float:
        """The share of the updates that the count knows nothing of."""
        return 1 - self.count / len(self.seconds)


def rows() -> Iterator[Row]:
    """For each number of writers: the most attempts, the slowest, and the cost of an update."""
    for writers in WRITERS:
        with empty_database() as url:
            store = open_store(url)
            Clients(store, Counter).create("hot")
            ours = together(url, writers, updating)
            ours = Crowd(
                ours.seconds, ours.attempts, Clients(store, Counter).get("hot").count, ours.spent
            )
            store.close()
        with empty_database() as url:
            client = connect(url)
            theirs = together(url, writers, getting_and_setting)
            theirs = Crowd(
                theirs.seconds, theirs.attempts, int(client.get("hot") or 0), theirs.spent
            )
            client.close()
        if ours.lost:
            raise AssertionError(f"{ours.lost:.1%} of the updates were lost")
        what = f"{writers} writers of one client"
        yield Row(
            what=f"{what}: most attempts of an update",
            ours=max(ours.attempts),
            rival="limit",
            theirs=ATTEMPTS,
            limit=1,
            unit="",
        )
        yield Row(
            what=f"{what}: the slowest update",
            ours=max(ours.seconds),
            rival="limit",
            theirs=SECONDS,
            limit=1,
        )
        yield Row(
            what=f"{what}: an update, none lost",
            ours=ours.spent / len(ours.seconds),
            rival=f"`get` and `set`, {theirs.lost:.0%} lost",
            theirs=theirs.spent / len(theirs.seconds),
        )


def updating(url: str, times: int, began: Barrier) -> list[tuple[float, int]]:
    """Count in the hot client: seconds and attempts of each."""
    store = open_store(url)
    clients = Clients(store, Counter, deadline=30.0)
    clients.get("hot")
    seen = []
    began.wait()
    for _ in range(times):
        tries: list[int] = []

        def add(counter: Counter, tries: list[int] = tries) -> None:
            tries.append(1)
            counter.count += 1

        at = time.perf_counter()
        clients.update("hot", add)
        seen.append((time.perf_counter() - at, len(tries)))
    store.close()
    return seen


def getting_and_setting(url: str, times: int, began: Barrier) -> list[tuple[float, int]]:
    """The same as many write it."""
    client = connect(url)
    client.ping()
    seen = []
    began.wait()
    for _ in range(times):
        at = time.perf_counter()
        client.set("hot", int(client.get("hot") or 0) + 1)
        seen.append((time.perf_counter() - at, 1))
    client.close()
    return seen


def together(
    url: str,
    writers: int,
    work: Callable[[str, int, Barrier], list[tuple[float, int]]],
) -> Crowd:
    """``work`` in ``writers`` processes at once."""
    processes = multiprocessing.get_context("spawn")
    began = processes.Barrier(writers + 1)
    answers = processes.SimpleQueue()
    crowd = [
        processes.Process(target=_writer, args=(url, UPDATES[writers], began, work, answers))
        for _ in range(writers)
    ]
    for process in crowd:
        process.start()
    began.wait()
    at = time.perf_counter()
    seen = [each for _ in crowd for each in answers.get()]
    spent = time.perf_counter() - at
    for process in crowd:
        process.join()
    seconds, attempts = zip(*seen, strict=True)
    return Crowd(seconds=[*seconds], attempts=[*attempts], count=0, spent=spent)


def _writer(
    url: str,
    times: int,
    began: Barrier,
    work: Callable[[str, int, Barrier], list[tuple[float, int]]],
    answers: multiprocessing.SimpleQueue[list[tuple[float, int]]],
) -> None:
    answers.put(work(url, times, began))
