"""The soak, in short: nothing is lost or doubled on any store, and it would be seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from soak.__main__ import main, row
from soak.places import PLACES, Place
from soak.trial import run
from tests.servers import ServerMissing

from celery_statekit.record import Change, Record
from celery_statekit.stores import MemoryStore, Store

#: So little time lies between two faults that hardly any operation is outside all of them.
CALM = (0.05, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("store", PLACES)
def test_nothing_is_lost_or_doubled(store: str) -> None:
    """While servers are killed and paused, connections cut, replies lost and writers killed."""
    try:
        outcome = run(store, PLACES[store], updates=800, writers=2, ledgers=20, calm=CALM)
    except ServerMissing as exc:
        if os.environ.get("CI") == "true" and store != "mariadb":
            raise
        pytest.skip(f"the store on {store} is not tested here: {exc}")

    assert outcome.violations == []
    assert outcome.passed, row(outcome)
    assert outcome.acknowledged >= 800
    assert store == "memory" or outcome.faults


class Forgets(MemoryStore):
    """Acknowledges each 50th write and does not do it."""

    writes = 0

    def write(self, record: Record, *, expect: Record | None, **words: Any) -> bool:
        self.writes += 1
        return self.writes % 50 == 0 or super().write(record, expect=expect, **words)


class Twice(MemoryStore):
    """Applies what it is asked twice, now and then, as a client with hidden retries does."""

    def write(
        self, record: Record, *, expect: Record | None, changes: Sequence[Change] = (), **words: Any
    ) -> bool:
        written = super().write(record, expect=expect, changes=changes, **words)
        if written and changes:
            again = [
                Change(**{**vars_of(change), "number": change.number + 1}) for change in changes
            ]
            super().write(record.next(record.document), expect=record, changes=again, **words)
        return written


def vars_of(change: Change) -> dict[str, Any]:
    return {name: getattr(change, name) for name in change.__dataclass_fields__}


@pytest.mark.parametrize(("broken", "rule"), [(Forgets, "lost"), (Twice, "doubled")])
def test_a_broken_store_does_not_pass(
    broken: Callable[[str], Store], rule: str, tmp_path: Path
) -> None:
    """Updates that are lost and moves that are doubled are named."""

    @contextmanager
    def place() -> Iterator[Place]:
        name = f"broken-{tmp_path.name}"
        yield Place((f"memory://{name}",), "none", threads=lambda: broken(name))

    outcome = run("broken", place, updates=400, ledgers=2)

    assert not outcome.passed
    assert outcome.broken(rule)
    assert f"{rule}: ledger-" in row(outcome)


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """And exits with 0 where all is well."""
    assert main(["--store", "memory", "--updates", "200", "--writers", "2"]) == 0
    assert "| memory | 2" in capsys.readouterr().out
