"""The client that is updated, and one checked operation on it.

A ledger counts its updates and names the last one. So each update, by what it found, tells who
wrote the version before it, and the ledger never grows: the whole sequence of updates can be put
together from what all writers were told, without one of them being kept in the store.
"""

from __future__ import annotations

import time
import zlib
from typing import Final

from celery_statekit import Clients, ClientState, States
from celery_statekit.errors import AmbiguousWrite, NoSuchClient, StatekitError
from celery_statekit.testing import Operation

#: Each how-many-th update of a ledger moves it, and so is in its history.
MOVES: Final = 20
#: Each how-many-th operation of a writer reads.
READS: Final = 8


class Sides(States):
    """Where a ledger stands: it goes to and fro."""

    LEFT = "Left"
    RIGHT = "Right"

    __flow__ = {"LEFT": "RIGHT", "RIGHT": "LEFT"}


class Ledger(ClientState, states=Sides):
    """The client that is updated."""

    #: Updates applied.
    count: int = 0
    #: Which was the last.
    last: str = ""


def ledger_of(operation: str, ledgers: int) -> str:
    """Which ledger an operation is about; by its name, so that it is known though it never ended."""
    return f"ledger-{zlib.crc32(operation.encode()) % ledgers}"


def is_read(number: int) -> bool:
    """Whether a writer's operation of that number reads."""
    return number % READS == 0


def read(clients: Clients[Ledger], id: str, name: str) -> Operation:
    """Read a ledger; what was found."""
    invoked = time.monotonic()
    try:
        ledger = clients.get(id)
    except NoSuchClient:
        return Operation(name, id, "read", invoked, time.monotonic(), "ok", 0)
    except StatekitError:
        return Operation(name, id, "read", invoked, time.monotonic(), "failed")
    completed = time.monotonic()
    return Operation(
        name, id, "read", invoked, completed, "ok", ledger.count, ledger.last, state=ledger.state
    )


def post(clients: Clients[Ledger], id: str, name: str) -> Operation:
    """Update a ledger; what became of it."""
    found: list[tuple[int, str | None]] = []

    def change(ledger: Ledger) -> None:
        found.append((ledger.count, ledger.last or None))
        ledger.count += 1
        ledger.last = name
        if ledger.count % MOVES == 0:
            ledger.enter("RIGHT" if ledger.state == "LEFT" else "LEFT", reason=name)

    invoked = time.monotonic()
    try:
        ledger = clients.update(id, change, create=True)
    except StatekitError as exc:
        base, writer = found[-1] if found else (None, None)
        outcome = "ambiguous" if isinstance(exc, AmbiguousWrite) else "failed"
        return Operation(
            name, id, "update", invoked, time.monotonic(), outcome, base, writer  # type: ignore[arg-type]
        )  # fmt: skip
    base, writer = found[-1]
    return Operation(
        name, id, "update", invoked, time.monotonic(), "ok", base, writer, ledger.count,
        state=ledger.state,
    )  # fmt: skip


def to_line(operation: Operation) -> bytes:
    """The operation as one line of a log."""
    base = "" if operation.base is None else operation.base
    version = "" if operation.version is None else operation.version
    return (
        f"{operation.id} {operation.key} {operation.kind} {operation.invoked!r} "
        f"{operation.completed!r} {operation.outcome} {base} {operation.writer or ''} {version} "
        f"{operation.state}\n"
    ).encode()


def from_line(line: str) -> Operation:
    """What :func:`to_line` made a line of."""
    id, key, kind, invoked, completed, outcome, base, writer, version, state = line.split(" ")
    return Operation(
        id, key, kind, float(invoked), float(completed), outcome,  # type: ignore[arg-type]
        int(base) if base else None, writer or None, int(version) if version else None,
        state=state,
    )  # fmt: skip
