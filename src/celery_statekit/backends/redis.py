"""Celery's Redis result backends, whose storing of a state is one guarded write."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha1
from typing import Any, Final

from celery.backends import redis

from celery_statekit.backends.onewrite import OneWrite
from celery_statekit.stores.base import Beside

#: Stores and publishes a result if what was read is still there. What is there is compared by its
#: SHA-1, so that it need not be sent back; "" stands for nothing.
COMPARE_AND_SET: Final = """
local key, value, seconds, expected = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local current = redis.call('GET', key)
if expected ~= (current and redis.sha1hex(current) or '') then
    return 0
end
if seconds > 0 then
    redis.call('SET', key, value, 'EX', seconds)
else
    redis.call('SET', key, value)
end
redis.call('PUBLISH', key, value)
return 1
"""


class _OnRedis(OneWrite):
    @cached_property
    def _compare_and_set(self) -> Any:
        return self.client.register_script(COMPARE_AND_SET)

    def compare_and_set(self, beside: Beside, current: bytes | str | None) -> bool:
        text = current.encode() if isinstance(current, str) else current
        expected = "" if text is None else sha1(text, usedforsecurity=False).hexdigest()
        arguments = [beside.value, int(beside.ttl or 0), expected]
        return bool(self._compare_and_set(keys=[beside.key], args=arguments))

    def chord_misses(self, request: Any) -> bool:
        # Where the results keep their order, what is told twice in the same words at the same moment
        # is one (celery 5.6 backends/redis.py:524). The size goes when the body has been sent.
        size, results = (self.get_key_for_group(request.group, end) for end in (".s", ".j"))
        if not self._chord_zset or not self.client.exists(size):
            return False
        place = "+inf" if request.group_index is None else request.group_index
        counted = self.client.zrangebyscore(results, place, place)
        return all(self.decode(each)[1] != request.id for each in counted)


class RedisBackend(_OnRedis, redis.RedisBackend):
    """Celery's Redis backend: a state is stored in one call, and an end is never left."""


class SentinelBackend(_OnRedis, redis.SentinelBackend):
    """The same through Sentinel."""
