"""Random numbers: the user's are his, ours are ours."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import celery_statekit
from celery_statekit.breaker import Breaker
from celery_statekit.chance import chance
from celery_statekit.errors import StoreUnavailable
from celery_statekit.stores import MemoryStore
from celery_statekit.tracker import Tracker


def test_a_seeded_user_draws_the_same_with_and_without_us() -> None:
    """Ids of writes and the breaker's jitter are not drawn from the global generator."""

    def fail() -> None:
        raise StoreUnavailable("shop", "on purpose")

    random.seed(7)
    before = random.getstate()
    Tracker(MemoryStore(None)).queue("t-1", "shop.load")
    with pytest.raises(StoreUnavailable):
        Breaker("shop").call(fail)
    assert random.getstate() == before

    ours = chance.getstate()
    random.seed(7)
    assert chance.getstate() == ours


def test_nothing_else_draws() -> None:
    """One file knows the module: the global generator is in no other's reach."""
    source = Path(celery_statekit.__file__).parent
    draws = [path.name for path in source.rglob("*.py") if "import random" in path.read_text()]
    assert draws == ["chance.py"]


def test_the_processes_of_a_fork_draw_differently() -> None:
    """Else two workers of a pool would name their writes alike, and wait alike."""
    chance.seed(7)
    reads, writes = os.pipe()
    if not (pid := os.fork()):
        os.write(writes, chance.randbytes(16))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 16) != chance.randbytes(16)
    os.close(reads)
    os.close(writes)
