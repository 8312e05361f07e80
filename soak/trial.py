"""One soak of one store: writers and faults, and in the end the judgement."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from celery_statekit import Clients
from celery_statekit.errors import NoSuchClient
from celery_statekit.stores import open_store
from celery_statekit.testing import BrokenHistory, Kept, Operation, Violation, check_history

from .ledger import MOVES, Ledger, from_line, is_read, ledger_of
from .places import Place
from .storm import CALM, Storm
from .writer import write

#: Of what begins and ends outside the faults: the share that must succeed.
SHARE: Final = 0.95
#: Where processes are started.
ROOT: Final = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What a soak showed."""

    store: str
    durability: str
    seconds: float
    updates: int = 0
    acknowledged: int = 0
    ambiguous: int = 0
    failed: int = 0
    #: Of the operations outside the faults: the share that succeeded; None: there were none.
    share: float | None = None
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    def broken(self, *rules: str) -> int:
        """How many violations there are of these rules."""
        return sum(violation.rule in rules for violation in self.violations)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, nothing doubled, and enough succeeded."""
        return not self.violations and (self.share is None or self.share >= SHARE)


class _Writer:
    """A process that writes, and after its death another in its place."""

    def __init__(self, url: str, folder: Path, name: str, updates: int, ledgers: int) -> None:
        self._url = url
        self._folder = folder
        self._name = name
        self._updates = updates
        self._ledgers = ledgers
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self.logs: list[Path] = []
        self._start()

    def _start(self) -> None:
        if self.logs:
            self._updates -= sum(1 for one in _lines(self.logs[-1]) if one.version is not None)
        log = self._folder / f"{self._name}-{len(self.logs) + 1}"
        log.touch()
        self.logs.append(log)
        command = [self._url, str(log), log.name, str(max(self._updates, 0)), str(self._ledgers)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.writer", *command], cwd=ROOT, stdin=subprocess.DEVNULL
        )

    @property
    def running(self) -> bool:
        """Whether it still writes.

        Raises:
            RuntimeError: it has failed itself.
        """
        with self._lock:
            assert self._process is not None
            ended = self._process.poll()
        if ended:
            raise RuntimeError(f"writer {self._name} failed: {ended}")
        return ended is None

    def kill(self) -> None:
        """Kill -9, and let another take its place; nothing happens where it has ended."""
        with self._lock:
            assert self._process is not None
            self._process.kill()
            if self._process.wait() == -signal.SIGKILL:
                self._start()

    def wait(self) -> None:
        """Wait until it has written all."""
        while self.running:
            time.sleep(0.01)

    def end(self) -> None:
        """Kill it for good."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def run(
    name: str,
    open_place: Callable[[], AbstractContextManager[Place]],
    *,
    updates: int,
    writers: int = 4,
    ledgers: int = 200,
    seed: int = 0,
    calm: tuple[float, float] = CALM,
    tell: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Make ``updates`` checked updates while faults come and go, and judge what is left.

    Args:
        name: what the store is called.
        open_place: where it is.
        updates: how many are to be acknowledged.
        writers: how many processes, or threads, write.
        ledgers: how many clients they share.
        seed: of the faults.
        calm: at least and at most so many seconds lie between two of them.
        tell: called every few seconds with how many operations have ended.
    """
    with ExitStack() as stack:
        place = stack.enter_context(open_place())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        share = -(-updates // writers)
        began = time.monotonic()
        work = _in_threads if place.threads else _in_processes
        logs, storm = work(place, folder, writers, share, ledgers, seed, calm, tell)
        outcome = Outcome(name, place.durability, time.monotonic() - began)
        outcome.faults = dict(storm.counts)
        operations = [operation for log in logs for operation in _told(log, ledgers)]
        _judge(outcome, place, operations, storm.windows, ledgers)
    return outcome


def _in_processes(
    place: Place, folder: Path, writers: int, updates: int, ledgers: int, seed: int,
    calm: tuple[float, float], tell: Callable[[int], None],
) -> tuple[list[Path], Storm]:  # fmt: skip
    chance = random.Random(seed)
    with ExitStack() as stack:
        running = []
        for number in range(writers):
            url = place.urls[number % len(place.urls)]
            running.append(_Writer(url, folder, f"w{number}", updates, ledgers))
            stack.callback(running[-1].end)
        faults = {**place.faults, "writer killed": lambda: chance.choice(running).kill()}
        storm = Storm(faults, seed, calm)
        storm.start()
        while any(writer.running for writer in running):
            time.sleep(0.05)
            tell(sum(_length(log) for writer in running for log in writer.logs))
        storm.stop()
        for writer in running:  # the last fault may have struck one that was about to end
            writer.wait()
        return [log for writer in running for log in writer.logs], storm


def _in_threads(
    place: Place, folder: Path, writers: int, updates: int, ledgers: int, seed: int,
    calm: tuple[float, float], tell: Callable[[int], None],
) -> tuple[list[Path], Storm]:  # fmt: skip
    assert place.threads is not None
    logs = [folder / f"w{number}" for number in range(writers)]
    threads = [
        threading.Thread(target=write, args=(place.threads(), log, log.name, updates, ledgers))
        for log in logs
    ]
    storm = Storm(place.faults, seed, calm)
    storm.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
            tell(sum(_length(log) for log in logs if log.exists()))
    storm.stop()
    return logs, storm


def _length(log: Path) -> int:
    return log.stat().st_size // 75


def _lines(log: Path) -> Iterator[Operation]:
    with log.open() as lines:
        for line in lines:
            if line.endswith("\n"):  # the last one of a process that was killed may be cut off
                yield from_line(line[:-1])


def _told(log: Path, ledgers: int) -> Iterator[Operation]:
    """What a writer was told, and that of its last operation it may not have been told."""
    number, ended = 0, 0.0
    for operation in _lines(log):
        yield operation
        number, ended = number + 1, operation.completed
    last = f"{log.name}.{number + 1}"
    if not is_read(number + 1):
        id = ledger_of(last, ledgers)
        yield Operation(last, id, "update", ended, math.inf, "ambiguous")


def _judge(
    outcome: Outcome,
    place: Place,
    operations: list[Operation],
    windows: list[tuple[float, float]],
    ledgers: int,
) -> None:
    store = open_store(place.urls[0])
    clients = Clients(store, Ledger, prefix="soak")
    kept = {}
    for number in range(ledgers):
        id = f"ledger-{number}"
        try:
            ledger = clients.get(id)
        except NoSuchClient:
            continue
        kept[id] = Kept(ledger.count, [ledger.last])
    try:
        check_history(operations, kept)
    except BrokenHistory as exc:
        outcome.violations = exc.report.violations
    outcome.violations += _compare_histories(clients, operations, kept)
    updates = [operation for operation in operations if operation.kind == "update"]
    outcome.updates = len(updates)
    for of in ("acknowledged", "ambiguous", "failed"):
        told = "ok" if of == "acknowledged" else of
        setattr(outcome, of, sum(operation.outcome == told for operation in updates))
    outcome.share = _share_outside(operations, windows)
    store.close()


def _compare_histories(
    clients: Clients[Ledger], operations: Iterable[Operation], kept: dict[str, Kept]
) -> list[Violation]:
    """Each move that was acknowledged is in the store's own history, once, and in its place."""
    moves: dict[str, dict[str, int]] = defaultdict(dict)
    for operation in operations:
        if operation.version is not None and operation.version % MOVES == 0:
            moves[operation.key][operation.id] = operation.version // MOVES
    found = []
    for id, ledger in kept.items():
        history = clients.history(id, limit=10_000)
        numbers = [change.number for change in history]
        last = ledger.version // MOVES
        if numbers != list(range(last - len(numbers) + 1, last + 1)):
            found.append(Violation("gap", id, f"its history does not lead to move {last}"))
        placed = {change.reason: change.number for change in history}
        if len(placed) < len(history):
            found.append(Violation("doubled", id, "a move is in its history twice"))
        for name, number in moves[id].items():
            if number in numbers and placed.get(name) != number:
                found.append(Violation("lost", id, f"{name} is not move {number} of its history"))
    return found


def _share_outside(operations: list[Operation], windows: list[tuple[float, float]]) -> float | None:
    """Of the operations that no fault's time touches: the share that succeeded."""
    ends = [end for _, end in windows]
    good = bad = 0
    for operation in operations:
        at = bisect_left(ends, operation.invoked)
        if at < len(windows) and windows[at][0] < operation.completed:
            continue
        good += operation.outcome == "ok"
        bad += operation.outcome != "ok" and operation.completed != math.inf
    return good / (good + bad) if good + bad else None
