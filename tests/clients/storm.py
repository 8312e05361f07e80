"""One process that updates a client as fast as it can, and writes down what was acknowledged.

.. code-block:: text

    python storm.py FILE NAME LOG UPDATES

Says ``ready``, waits for a line, begins. Each update moves the client and gives its own name as
the reason, so that the history is the list of what was applied.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery_statekit import Clients, ClientState, States
from celery_statekit.record import Limits
from celery_statekit.stores import SQLiteStore

#: Seconds in which an update must be applied: more than the test lasts.
PATIENCE = 60.0
#: Changes kept: all.
HISTORY = 10_000


class Sides(States):
    LEFT = "Left"
    RIGHT = "Right"

    __flow__ = {"LEFT": "RIGHT", "RIGHT": "LEFT"}


class Pendulum(ClientState, states=Sides):
    #: Updates applied, by process.
    counts: dict[str, int] = {}
    #: The newest update applied, by process.
    newest: dict[str, int] = {}


def pendulums(file: Path) -> Clients[Pendulum]:
    """The clients in ``file``."""
    store = SQLiteStore(file, Limits(history_changes=HISTORY), timeout=PATIENCE)
    return Clients(store, Pendulum, deadline=PATIENCE)


def swing(pendulum: Pendulum, name: str, number: int) -> None:
    """Update ``number`` of process ``name``."""
    pendulum.counts[name] = pendulum.counts.get(name, 0) + 1
    pendulum.newest[name] = number
    pendulum.enter("RIGHT" if pendulum.state == "LEFT" else "LEFT", reason=f"{name}:{number}")


def main(file: str, name: str, log: str, updates: str) -> None:
    """Update, and write down each update after it was acknowledged."""
    clients = pendulums(Path(file))
    acknowledged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    sys.stdin.readline()
    for number in range(1, int(updates) + 1):
        clients.update("p-1", lambda pendulum, number=number: swing(pendulum, name, number))
        os.write(acknowledged, f"{name}:{number}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
