"""The Redis store keeps the contract on a real server."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import redis

from celery_statekit.record import Limits
from celery_statekit.stores import Store
from celery_statekit.stores.redis import RedisStore
from celery_statekit.testing import (
    EnumeratesContract,
    LeasesContract,
    NotifiesContract,
    PostsContract,
    RenewsContract,
    StoreContract,
)

pytestmark = pytest.mark.redis


@pytest.fixture
def prefix() -> str:
    """What the keys of one test begin with."""
    return f"{uuid.uuid4().hex}-"


@pytest.fixture
def plant_in_redis(redis_url: str, prefix: str) -> Callable[[str, bytes], None]:
    """Overwrites what the server keeps of a key, but for the heads that our scripts read."""

    def plant(key: str, text: bytes) -> None:
        with redis.Redis.from_url(redis_url) as client:
            lines = client.lrange(prefix + key, 0, -1)
            for at, line in enumerate(lines):
                mark = b"\n" if at == len(lines) - 1 else b" "
                head, _, _ = line.partition(mark)
                client.lset(prefix + key, at, head + mark + text)

    return plant


class TestRedisStore(
    StoreContract,
    LeasesContract,
    RenewsContract,
    EnumeratesContract,
    NotifiesContract,
    PostsContract,
):
    #: Expiry is the server's and real.
    ttl = 0.3

    @pytest.fixture
    def reopen(self, redis_url: str, prefix: str) -> Callable[[Limits | None], Store]:
        return lambda limits=None: RedisStore(redis_url, limits, key_prefix=prefix)

    @pytest.fixture
    def plant(self, plant_in_redis: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_redis
