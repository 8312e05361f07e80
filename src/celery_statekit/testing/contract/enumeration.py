"""The contract of listing keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_statekit.record import Record
from celery_statekit.stores.base import Enumerates, Leases
from celery_statekit.testing.contract.place import KEYS, EnumeratingStore, StoreFixtures, written


class EnumeratesContract(StoreFixtures):
    """What a store that is also :class:`~celery_statekit.stores.base.Enumerates` must do."""

    def test_it_lists_keys(self, store: EnumeratingStore) -> None:
        """It has all that the protocol asks for; an empty store has none."""
        assert isinstance(store, Enumerates)
        assert store.keys("") == []

    def test_keys_of_a_prefix_in_order(self, store: EnumeratingStore) -> None:
        """All that begin so, the prefix itself included, in order of text."""
        for key in ("a:2", "b:1", "a:10", "a:", "a", "A:1", "a:1"):
            written(store, Record.first(key, {}))

        assert store.keys("a:") == ["a:", "a:1", "a:10", "a:2"]
        assert store.keys("") == ["A:1", "a", "a:", "a:1", "a:10", "a:2", "b:1"]
        assert store.keys("c") == []

    def test_keys_page_by_page(self, store: EnumeratingStore) -> None:
        """Paging by the last key misses none and repeats none."""
        keys = sorted(f"k{number}" for number in range(25))
        for key in [*keys, "j", "l"]:
            written(store, Record.first(key, {}))
        listed: list[str] = []
        for _ in range(3):
            listed += store.keys("k", listed[-1] if listed else "", limit=10)

        assert listed == keys
        assert store.keys("k", keys[-1]) == []

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_that_is_not_positive_gives_nothing(
        self, store: EnumeratingStore, limit: int
    ) -> None:
        """No limit means "all" by accident, or "all but the last"."""
        for key in ("a", "b", "c"):
            written(store, Record.first(key, {}))

        assert store.keys("", limit=limit) == []

    def test_only_what_can_be_read_is_listed(
        self, store: EnumeratingStore, elapse: Callable[[float], None]
    ) -> None:
        """Neither deleted nor expired keys are, nor those that have nothing but a lease."""
        written(store, Record.first("a", {}), ttl=self.ttl)
        written(store, Record.first("b", {}), ttl=self.ttl * 60)
        written(store, Record.first("c", {}))
        written(store, Record.first("d", {}))
        store.delete("c")
        if isinstance(store, Leases):
            store.acquire("e", "owner", self.ttl * 60)
        elapse(self.ttl * 1.1)

        assert store.keys("") == ["b", "d"]

    def test_keys_of_every_kind_are_listed(self, store: EnumeratingStore) -> None:
        """Each key is found by a prefix that is itself, whatever stands in it."""
        for key in KEYS:
            written(store, Record.first(key, {}))

        assert store.keys("") == sorted(KEYS)
        assert [store.keys(key)[0] for key in KEYS] == list(KEYS)
        assert [store.keys(prefix) for prefix in ("pl%", "pl_", "pl*", "pl[", "p%")] == [
            ["pl%in"],
            ["pl_in"],
            ["pl*in"],
            ["pl[a]in"],
            [],
        ]
