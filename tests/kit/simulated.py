"""A store and its callers, simulated: many interleavings in little time, and each the same again.

The store keeps tasks, with fences and an end, and clients. A mutant overrides what a caller or the
store does right.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from celery_statekit.testing import Kept, Operation

#: Tries of one update before its caller gives up.
TRIES = 20


class Entry(NamedTuple):
    """One version of a key."""

    version: int = 0
    writer: str | None = None
    fence: tuple[int, int] = (0, 0)
    state: str = ""


class Shelf:
    """A correct store."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.entries: dict[str, list[Entry]] = defaultdict(lambda: [Entry()])

    def read(self, key: str) -> Entry:
        return self.entries[key][-1]

    def write(self, key: str, base: Entry, new: Entry) -> bool:
        if self.entries[key][-1].version != base.version:
            return False
        self.entries[key].append(new)
        return True

    def version(self, new: Entry) -> int:
        """The version that whoever wrote ``new`` is told."""
        return new.version

    def wrote(self, key: str, id: str) -> bool:
        """Whether ``id`` was applied: what the ids of writes in a record tell."""
        return any(entry.writer == id for entry in self.entries[key])

    def kept(self) -> dict[str, Kept]:
        return {
            key: Kept(entries[-1].version, [str(entry.writer) for entry in entries[1:]])
            for key, entries in self.entries.items()
        }


class Caller:
    """One who reads and updates the keys in turn; a correct one."""

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self.run = run
        self.shelf = run.shelf
        self.chance = run.chance
        self.number = 0
        self.attempts: dict[str, int] = {}

    # --- what a mutant gets wrong -------------------------------------------------------------

    def may_write(self, key: str, base: Entry) -> bool:
        """Whether this caller's attempt is the newest, and the task has not ended."""
        return base.state != "DONE" and base.fence[0] <= self.attempts[key]

    def fence(self, key: str, base: Entry) -> tuple[int, int]:
        attempt = self.attempts[key]
        return (attempt, base.fence[1] + 1 if base.fence[0] == attempt else 1)

    def outcome(self, key: str, id: str, written: bool, lost: bool) -> str:
        """What is said of a write that is over, when there was a reply and when there was none."""
        if not lost:
            return "ok" if written else "again"
        if self.chance.random() < 0.3:
            return "ambiguous"
        return "ok" if self.shelf.wrote(key, id) else "again"

    def read(self, key: str) -> Entry:
        """What it takes for the newest version."""
        return self.shelf.read(key)

    # --- steps --------------------------------------------------------------------------------

    def steps(self) -> Iterator[None]:
        """One operation after the other; between two steps others take theirs."""
        while not self.run.over:
            self.number += 1
            key = self.chance.choice(self.run.keys)
            id = f"{self.name}.{self.number}"
            if self.chance.random() < 0.3:
                yield from self.reading(key, id)
            else:
                yield from self.updating(key, id)

    def reading(self, key: str, id: str) -> Iterator[None]:
        invoked = self.run.tick()
        yield
        entry = self.read(key)
        yield
        self.run.tell(Operation(
            id, key, "read", invoked, self.run.tick(), "ok", entry.version, entry.writer,
            state=entry.state,
        ))  # fmt: skip

    def updating(self, key: str, id: str) -> Iterator[None]:
        task = key.startswith("task")
        invoked, outcome, base, new = self.run.tick(), "again", Entry(), Entry()
        for _ in range(TRIES):
            yield
            base = self.read(key)
            if task and (key not in self.attempts or self.chance.random() < 0.02):
                self.attempts[key] = base.fence[0] + 1
            yield
            if task and not self.may_write(key, base):
                outcome = "failed"
                del self.attempts[key]
                break
            new = Entry(base.version + 1, id, (0, 0), self.chance.choice("AB"))
            if task:
                ended = self.chance.random() < 0.01
                state = "DONE" if ended else "RUN"
                new = Entry(base.version + 1, id, self.fence(key, base), state)
            lost = self.chance.random() < 0.1
            unsent = lost and self.chance.random() < 0.5
            written = not unsent and self.shelf.write(key, base, new)
            yield
            outcome = self.outcome(key, id, written, lost)
            if outcome != "again":
                break
        never = outcome == "ambiguous" and self.chance.random() < 0.5
        self.run.tell(Operation(
            id, key, "update", invoked, math.inf if never else self.run.tick(),
            "failed" if outcome == "again" else outcome,  # type: ignore[arg-type]
            base.version, base.writer, self.shelf.version(new) if outcome == "ok" else None,
            new.fence if task else None, new.state,
        ))  # fmt: skip


class Run:
    """Callers of one store, who take their steps in an order that ``seed`` gives."""

    def __init__(
        self,
        seed: int = 0,
        *,
        shelf: type[Shelf] = Shelf,
        caller: type[Caller] = Caller,
        callers: int = 6,
        clients: int = 3,
        tasks: int = 20,
        operations: int = 600,
    ) -> None:
        self.chance = random.Random(seed)
        self.shelf = shelf(self.chance)
        self.keys = [f"client:{n}" for n in range(clients)] + [f"task:{n}" for n in range(tasks)]
        self.now = 0.0
        #: Whether those who are called now are the last ones.
        self.over = False
        self.operations: list[Operation] = []
        turns = [caller(f"c{number}", self).steps() for number in range(callers)]
        while len(self.operations) < operations:
            next(self.chance.choice(turns))
        self.over = True
        for turn in turns:
            for _ in turn:
                pass
        self.kept = self.shelf.kept()

    def tick(self) -> float:
        """The time: later than any other."""
        self.now += 1.0
        return self.now

    def tell(self, operation: Operation) -> None:
        self.operations.append(operation)
