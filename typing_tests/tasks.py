"""Tasks as type checkers see them; read by mypy and pyright, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import Any

from celery import Celery
from typing_extensions import assert_type

from celery_statekit import Change, StatefulResult, StatefulTask, States, TaskState, stateful, track

app = Celery("shop")


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"


@stateful(app, bind=True, states=Import)
def import_orders(self: StatefulTask, path: str, *, strict: bool = False) -> int:
    self.enter(Import.READING, reason="by hand")
    assert_type(self.next_states, tuple[str, ...])
    for number in self.track([1, 2, 3], "reading", total=3):
        assert_type(number, int)
    for letter in track("abc"):
        assert_type(letter, str)
    assert_type(self.task_state, TaskState)
    self.progress.set(1, 2, "half")
    return len(path)


@stateful(states=Import)
def shared(path: str) -> list[str]:
    return [path]


# What the functions take is what delay takes.
result = import_orders.delay("orders.csv", strict=True)
assert_type(result, StatefulResult[int])
assert_type(shared.delay("orders.csv"), StatefulResult[list[str]])
assert_type(import_orders("orders.csv"), int)
import_orders.delay(7)  # type: ignore[arg-type]
import_orders.delay()  # type: ignore[call-arg]
import_orders.delay("orders.csv", strikt=True)  # type: ignore[call-arg]
shared.delay(None)  # type: ignore[arg-type]
stateful(app, states="READING")  # type: ignore[call-overload]

# What a result knows.
assert_type(result.get(), int)
assert_type(result.task_state, TaskState)
assert_type(result.task_state.state, str)
assert_type(result.task_state.attempt, int)
assert_type(result.history(), list[Change])
assert_type(result.wait(until=Import.IMPORTING), TaskState)
for state in result.watch(timeout=5):
    assert_type(state, TaskState)


async def follow() -> None:
    async for state in result.awatch():
        assert_type(state, TaskState)


class ByHand(StatefulTask):
    states = Import

    def run(self, path: str) -> None:
        self.enter(Import.READING)

    def on_state_change(self, change: Change) -> None:
        assert_type(change.reason, str)


plain: Any = app.task(base=StatefulTask)(len)
