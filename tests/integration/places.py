"""Where a test runs, other than with Redis for all: its broker, and where results and records are."""

from __future__ import annotations

from typing import Any

import pytest

REDIS_BROKER = pytest.param("celery_redis_broker", id="redis")
RABBITMQ_BROKER = pytest.param(
    "celery_rabbitmq_broker", id="rabbitmq", marks=[pytest.mark.rabbitmq, pytest.mark.slow]
)
REDIS_RESULTS = pytest.param("celery_redis_backend", id="redis")
POSTGRESQL_RESULTS = pytest.param("celery_postgres_backend", id="postgresql", marks=pytest.mark.sql)

RABBITMQ = pytest.mark.parametrize("celery_broker", [RABBITMQ_BROKER], indirect=True)
BOTH_BACKENDS = pytest.mark.parametrize(
    "celery_backend", [REDIS_RESULTS, POSTGRESQL_RESULTS], indirect=True
)


def together(broker: Any, results: Any) -> Any:
    """Both at once, for a parameter of two."""
    return pytest.param(
        *broker.values, *results.values,
        id=f"{broker.id}+{results.id}", marks=[*broker.marks, *results.marks],
    )  # fmt: skip


BOTH_WAYS = pytest.mark.parametrize(
    ("celery_broker", "celery_backend"),
    [together(REDIS_BROKER, REDIS_RESULTS), together(RABBITMQ_BROKER, POSTGRESQL_RESULTS)],
    indirect=True,
)
