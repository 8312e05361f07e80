"""What importing the library adds to importing Celery."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from benchmarks.comparison import Measure, Row, in_turns

ROUNDS: Final = 15
#: An import may take so many times what Celery's takes.
LIMIT: Final = 1.15
CELERY: Final = "from celery import Task"
#: Each with its limit.
OURS: Final = {
    "import celery_statekit": LIMIT,
    "from celery_statekit import StatefulTask": LIMIT,
    "from celery_statekit import StatefulTask, ClientState, Clients": None,
}

PROGRAM: Final = """
import time
began = time.perf_counter()
{statement}
print(time.perf_counter() - began)
"""


def rows() -> list[Row]:
    """Each import in a process of its own."""
    theirs, *ours = in_turns(*(fresh(statement) for statement in (CELERY, *OURS)), rounds=ROUNDS)
    return [
        Row(what=f"`{statement}`", ours=cost, rival=f"`{CELERY}`", theirs=theirs, limit=limit)
        for (statement, limit), cost in zip(OURS.items(), ours, strict=True)
    ]


def fresh(statement: str) -> Measure:
    """Seconds that ``statement`` takes in a new process."""
    command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
    # Compiled once, as an installed package is.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def measure() -> float:
        run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603 - ours
        return float(run.stdout)

    return measure
