"""A store in memory that posts, and the same with one fault each, for the contract to catch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from celery_statekit.errors import PayloadTooLarge
from celery_statekit.record import Record
from celery_statekit.stores.base import Posted
from celery_statekit.stores.memory import MemoryStore
from celery_statekit.testing import ManualClock, PostsContract, StoreContract
from celery_statekit.testing.contract import notices


class Answer:
    """What the store has said already."""

    def __init__(self, say: Callable[[], bool]) -> None:
        self._say = say

    def is_written(self, seconds: float) -> bool:
        return self._say()


class PostingStore(MemoryStore):
    """Writes at once what is posted, and says later what has come of it."""

    def post(self, record: Record, **facts: Any) -> Posted | None:
        written = self.write(record, expect=None, **facts)
        return Answer(lambda: written)


class UnbrokenPosting(StoreContract, PostsContract):
    """The store, and what of it a mutant replaces."""

    __test__ = False
    shared_between_processes = False
    #: Name of the contract's test that must fail.
    caught_by: ClassVar[str] = ""
    store_class: ClassVar[type] = PostingStore

    @pytest.fixture
    def reopen(
        self, place: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Any]:
        if self.caught_by:
            # What will not happen need not be waited for so long.
            monkeypatch.setattr(notices, "DEADLINE", 2.0)
            monkeypatch.setattr("celery_statekit.testing.contract.crowd.DEADLINE", 2.0)
        return lambda limits=None: self.store_class(place, limits, now=clock)

    @pytest.fixture
    def elapse(self, clock: ManualClock) -> Callable[[float], None]:
        return clock.advance

    @pytest.fixture
    def plant(self, plant_in_memory: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_memory


class PostsNothing(UnbrokenPosting):
    """It has no ``post``."""

    caught_by = "test_it_posts"
    store_class = MemoryStore


class PostsNowhere(UnbrokenPosting):
    """What is posted is said to be written, and is not."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            return Answer(lambda: True)

    caught_by = "test_what_was_posted_is_written"
    store_class = Store


class PostsOverWhatIsThere(UnbrokenPosting):
    """The one who posts last wins."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            self.delete(record.key)
            return super().post(record, **facts)

    caught_by = "test_it_never_writes_over_a_record"
    store_class = Store


class SaysPostedWhenLost(UnbrokenPosting):
    """A lost one is not told."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            super().post(record, **facts)
            return Answer(lambda: True)

    caught_by = "test_it_never_writes_over_a_record"
    store_class = Store


class SaysItOfOnesOwn(UnbrokenPosting):
    """Who finds its own record there is told that it has written it, however often."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            super().post(record, **facts)
            found = self.read(record.key)
            return Answer(lambda: found is not None and found.same(record))

    caught_by = "test_the_same_record_is_posted_once"
    store_class = Store


class PostsNoChanges(UnbrokenPosting):
    """The history begins with what is written next."""

    class Store(PostingStore):
        def post(self, record: Record, *, changes: Any = (), **facts: Any) -> Posted | None:
            return super().post(record, **facts)

    caught_by = "test_what_was_posted_is_written"
    store_class = Store


class PostsForEver(UnbrokenPosting):
    """What is posted has no time to live."""

    class Store(PostingStore):
        def post(self, record: Record, *, ttl: Any = None, **facts: Any) -> Posted | None:
            return super().post(record, **facts)

    caught_by = "test_what_was_posted_expires"
    store_class = Store


class PostsUnlabelled(UnbrokenPosting):
    """Nobody finds what was posted."""

    class Store(PostingStore):
        def post(self, record: Record, *, labels: Any = None, **facts: Any) -> Posted | None:
            return super().post(record, **facts)

    caught_by = "test_what_was_posted_is_found"
    store_class = Store


class PostsInSilence(UnbrokenPosting):
    """Who watches the key is not woken."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            self._shelf.subscribers.discard(self._subscribers)
            try:
                return super().post(record, **facts)
            finally:
                self._shelf.subscribers.add(self._subscribers)

    caught_by = "test_what_was_posted_wakes"
    store_class = Store


class WritesWhenAsked(UnbrokenPosting):
    """Nothing is sent before somebody asks for the answer."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            return Answer(lambda: self.write(record, expect=None, **facts))

    caught_by = "test_it_is_written_though_nobody_asks"
    store_class = Store


class AnswersInOrder(UnbrokenPosting):
    """Who asks first gets the answer to what was posted first."""

    class Store(PostingStore):
        _answers: ClassVar[deque[bool]] = deque()

        def post(self, record: Record, **facts: Any) -> Posted | None:
            self._answers.append(self.write(record, expect=None, **facts))
            return Answer(self._answers.popleft)

    caught_by = "test_each_gets_its_own_answer"
    store_class = Store


class SaysNotSentThoughItIs(UnbrokenPosting):
    """Each second one is sent, and said not to be."""

    class Store(PostingStore):
        _posted = 0

        def post(self, record: Record, **facts: Any) -> Posted | None:
            self._posted += 1
            posted = super().post(record, **facts)
            return posted if self._posted % 2 else None

    caught_by = "test_where_it_cannot_be_done_nothing_is"
    store_class = Store


class LooksAndThenPosts(UnbrokenPosting):
    """It looks whether something is there before it writes, not while it does."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            if self.read(record.key) is not None:
                return Answer(lambda: False)
            time.sleep(0.01)  # a busy machine
            self.delete(record.key)
            return super().post(record, **facts)

    caught_by = "test_of_many_one_is_first"
    store_class = Store


class RefusesNothing(UnbrokenPosting):
    """What is too large is lost without a word."""

    class Store(PostingStore):
        def post(self, record: Record, **facts: Any) -> Posted | None:
            with suppress(PayloadTooLarge):
                return super().post(record, **facts)
            return Answer(lambda: False)

    caught_by = "test_what_is_too_large_is_not_posted"
    store_class = Store
