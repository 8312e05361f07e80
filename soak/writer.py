"""One writer: updates ledgers as fast as it can, and writes down what it was told.

.. code-block:: text

    python -m soak.writer URL LOG NAME UPDATES LEDGERS
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

from celery_statekit import Clients
from celery_statekit.stores import Store, open_store

from .ledger import Ledger, is_read, ledger_of, post, read, to_line

#: Seconds that one call to a store may take, and one update with all its tries.
TIMEOUT: Final = 1.0
DEADLINE: Final = 3.0
#: Seconds that a writer waits after an error.
BREATH: Final = 0.02


def write(store: Store, log: Path, name: str, updates: int, ledgers: int) -> None:
    """Update ledgers until so many updates were acknowledged; one line of ``log`` each."""
    clients = Clients(store, Ledger, prefix="soak", deadline=DEADLINE)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    acknowledged = number = 0
    while acknowledged < updates:
        number += 1
        operation_name = f"{name}.{number}"
        work = read if is_read(number) else post
        operation = work(clients, ledger_of(operation_name, ledgers), operation_name)
        os.write(file, to_line(operation))
        acknowledged += operation.version is not None
        if operation.outcome != "ok":
            time.sleep(BREATH)
    os.close(file)


def main(url: str, log: str, name: str, updates: str, ledgers: str) -> None:
    """Write by a store of this process's own."""
    logging.disable()  # a lease that cannot be given back while the server is down
    store = open_store(url, timeout=TIMEOUT)
    write(store, Path(log), name, int(updates), int(ledgers))
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
