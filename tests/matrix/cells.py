"""The axes of the matrix, and its cells as ``cells.csv`` has them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from celery import VERSION as CELERY

from .lanes import Seen

CELLS: Final = Path(__file__).with_name("cells.csv")
#: The cells that are others before Celery 5.7, for what Celery itself does there.
BEFORE_5_7: Final = Path(__file__).with_name("cells-before-5.7.csv")
POOLS: Final = ("gevent", "prefork", "solo", "threads")
BROKERS: Final = ("rabbitmq", "redis")
ACKS: Final = ("early", "late")
MODES: Final = ("base", "setup")
OUTCOMES: Final = (
    "autoretry_for",
    "before_start_raises",
    "chain",
    "cold_shutdown",
    "cold_shutdown_next_worker",
    "exception",
    "expired",
    "failed_chain",
    "hard_time_limit",
    "ignore",
    "kill_child",
    "kill_child_requeue",
    "on_failure_raises",
    "on_success_raises",
    "reject",
    "reject_requeue",
    "replace",
    "retry",
    "retry_exhausted",
    "revoke_terminate",
    "revoked_before_start",
    "soft_time_limit",
    "success",
    "sys_exit",
    "unknown_task",
    "unserialisable_return",
    "warm_shutdown",
    "wrong_arguments",
)


@dataclass(frozen=True, order=True)
class Configuration:
    """How a worker is run."""

    pool: str
    broker: str
    ack: str
    mode: str

    def __str__(self) -> str:
        return f"{self.pool}-{self.broker}-{self.ack}-{self.mode}"


CONFIGURATIONS: Final = tuple(
    Configuration(*values) for values in product(POOLS, BROKERS, ACKS, MODES)
)
#: Eight configurations in which any two values of two axes meet.
SHORT: Final = tuple(
    Configuration(pool, broker, ACKS[(p + b) % 2], MODES[(p // 2 + b) % 2])
    for (p, pool), (b, broker) in product(enumerate(POOLS), enumerate(BROKERS))
)


@dataclass(frozen=True)
class Cell:
    """What one outcome comes to in one configuration."""

    outcome: str
    configuration: Configuration
    expected: Seen
    #: Why it is so, where it is not as the outcome's name says.
    note: str

    @property
    def key(self) -> tuple[str, Configuration]:
        """Which cell it is."""
        return self.outcome, self.configuration

    @property
    def told(self) -> bool:
        """Whether it can be told at all; else the note says why not."""
        return bool(self.expected.history)


def read_cells() -> list[Cell]:
    """All cells, as this Celery has them, in the order of the file."""
    cells = read(CELLS)
    others = {} if CELERY >= (5, 7) else {cell.key: cell for cell in read(BEFORE_5_7)}
    return [others.get(cell.key, cell) for cell in cells]


def read(path: Path) -> list[Cell]:
    """The cells of one file."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [
            Cell(
                outcome=row.pop("outcome"),
                configuration=Configuration(
                    row.pop("pool"), row.pop("broker"), row.pop("ack"), row.pop("mode")
                ),
                note=row.pop("note"),
                expected=Seen(**row),
            )
            for row in csv.DictReader(lines)
        ]
