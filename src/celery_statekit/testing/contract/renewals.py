"""The contract of who works on a record: until when its owner counts as alive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import pytest

from celery_statekit.errors import CorruptRecord, StoreUnavailable
from celery_statekit.record import Record
from celery_statekit.stores.base import Enumerates, Labels, Leases, Renews, kind_of
from celery_statekit.testing.contract.crowd import in_threads
from celery_statekit.testing.contract.place import (
    KEY,
    KEYS,
    OTHER,
    RenewingStore,
    Reopen,
    StoreFixtures,
    moved,
    written,
)

#: Owners that must not be taken for one another, however a store compares text and cuts it.
OWNERS: Final = (
    "",
    "celery@host:1",
    "celery@host:12",
    "Celery@host:1",
    "celery@host:1 ",
    "c",
    "b:c",
    "b|c",
    "b\nc",
    "b%7Cc",
    "it's \0 %s {0} \\",
    "caf\u00e9",
    "cafe\u0301",
    "x" * 500,
    "\U0001f680" * 499 + "a",
    "\U0001f680" * 499 + "b",
)
#: With an owner behind them some are one text.
ODD_KEYS: Final = (*KEYS, "a", "a:b", "a|b", "a\nb", "a%7Cb")
#: A prime that is larger than there are keys, or owners.
LENGTHS: Final = 41


class RenewsContract(StoreFixtures):
    """What a store that is also :class:`~celery_statekit.stores.base.Renews` must do."""

    def test_it_renews(self, store: RenewingStore) -> None:
        """It has all that the protocol asks for."""
        assert isinstance(store, Renews)

    def test_a_record_is_leased_from_its_label_on(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """To whoever is asked about, and for as long as is asked about."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        first = _left(store, "a", self.ttl * 60)
        elapse(self.ttl)

        assert self.ttl < first <= self.ttl * 60
        assert 0 < _left(store, "a", self.ttl * 60) < first - self.ttl * 0.9
        assert 0 < _left(store, "b", self.ttl * 60) < first - self.ttl * 0.9
        assert self.ttl * 60 < _left(store, "a", self.ttl * 120)

    def test_a_lease_that_nobody_renews_ends(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """Nothing is left of it then, and never less than nothing."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) == 0.0
        assert _left(store, "a", 0.0) == 0.0

    def test_another_label_begins_another_lease(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """It lasts from then."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        elapse(self.ttl * 1.1)
        before = _left(store, "a", self.ttl * 60)
        moved(store, KEY, "B")

        assert _left(store, "a", self.ttl * 60) > before

    def test_the_same_label_does_not_begin_it_again(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """What is written meanwhile, another client's label too, makes nobody live longer."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        elapse(self.ttl * 1.1)
        moved(store, KEY, "A")
        moved(store, KEY, "A", "client")

        assert _left(store, "a", self.ttl) == 0.0

    def test_a_renewal_prolongs(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """From then on for as long as it says, also where the lease had ended."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        for _ in range(2):
            elapse(self.ttl * 1.1)
            before = _left(store, "a", self.ttl)
            store.renew([(KEY, "a")], self.ttl * 60)
            after = _left(store, "a", self.ttl)

            assert before < self.ttl * 59
            assert self.ttl * 50 < after <= self.ttl * 60

    def test_a_renewal_ends(self, store: RenewingStore, elapse: Callable[[float], None]) -> None:
        """By the store's clock."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a")], self.ttl)
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) == 0.0

    def test_a_renewal_does_not_cut_short_what_the_label_gives(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """The later of the two counts, before and after the renewal has ended."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a")], self.ttl)
        during = _left(store, "a", self.ttl * 60)
        elapse(self.ttl * 1.1)

        assert during > self.ttl
        assert _left(store, "a", self.ttl * 60) > self.ttl

    def test_another_owner_prolongs_nothing(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """Who took over a record does not make the one before live on."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "b"), (OTHER, "a")], self.ttl * 60)
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) == 0.0
        assert _left(store, "b", self.ttl) > 0

    def test_another_owner_ends_nothing(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """A later renewal by another one, and its end, leave the first as it is."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a")], self.ttl * 60)
        store.renew([(KEY, "b"), (OTHER, "a")], self.ttl)
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) > 0
        assert _left(store, "b", self.ttl) == 0.0

    def test_the_newest_renewal_counts(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """Also where it ends sooner than what stands."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a")], self.ttl * 60)
        store.renew([(KEY, "a")], self.ttl)
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) == 0.0

    @pytest.mark.parametrize("seconds", [0.0, -1.0])
    def test_a_renewal_for_no_time(
        self, store: RenewingStore, elapse: Callable[[float], None], seconds: float
    ) -> None:
        """Is the end of the one before."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a")], self.ttl * 60)
        store.renew([(KEY, "a")], seconds)
        elapse(self.ttl * 1.1)

        assert _left(store, "a", self.ttl) == 0.0

    def test_who_renews_before_there_is_a_record(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """Counts as alive once it is there."""
        store.renew([(KEY, "a")], self.ttl * 60)
        nothing = store.left(KEY, "a", self.ttl)
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        elapse(self.ttl * 1.1)

        assert nothing is None
        assert _left(store, "a", self.ttl) > 0

    def test_a_renewal_makes_no_record(self, store: RenewingStore) -> None:
        """Nothing is read, listed or held because of it, and it hinders no write."""
        store.renew([(KEY, "a")], self.ttl * 60)

        assert store.read(KEY) is None
        assert store.history(KEY) == []
        assert store.delete(KEY) is False
        if isinstance(store, Enumerates):
            assert store.find(kind_of(KEY)) == []
            assert store.count(kind_of(KEY)) == {}
        if isinstance(store, Leases):
            assert store.acquire(KEY, "b", self.ttl * 60) is True
        record = written(store, Record.first(KEY, {}))
        assert store.read(KEY) == record

    def test_of_no_record_nothing_is_left(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """None where there never was one, or it was deleted, or has expired; renewed or not."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        written(store, Record.first(OTHER, {}), labels=Labels("A"), ttl=self.ttl)
        store.renew([(key, "a") for key in (KEY, OTHER, "never")], self.ttl * 60)
        store.delete(KEY)
        elapse(self.ttl * 1.1)

        for owner in ("a", "b"):
            for key in (KEY, OTHER, "never"):
                assert store.left(key, owner, self.ttl * 60) is None

    def test_a_renewal_outlives_who_made_it(
        self, reopen: Reopen, elapse: Callable[[float], None]
    ) -> None:
        """Each process sees those of all others, also after they have gone."""

        def work(by: int) -> None:
            with closing(reopen()) as own:
                assert isinstance(own, Renews)
                own.renew([(KEY, f"{by}")], self.ttl * 60)

        with closing(reopen()) as store:
            written(store, Record.first(KEY, {}), labels=Labels("A"))
        self.at_once(3, work)
        elapse(self.ttl * 1.1)

        with closing(reopen()) as again:
            assert isinstance(again, Renews)
            left = [again.left(KEY, f"{by}", self.ttl) for by in range(4)]
        assert [each and each > 0 for each in left] == [True, True, True, 0.0]

    def test_many_at_once(self, store: RenewingStore, elapse: Callable[[float], None]) -> None:
        """However many there are, none is left out; nothing happens for none."""
        leases = {(f"k:{number}", f"{number % 7}"): number for number in range(2500)}
        some = [(f"k:{number}", f"{number % 7}") for number in (0, 999, 1000, 1001, 2499)]
        for key, _ in some:
            written(store, Record.first(key, {}), labels=Labels("A"))
        store.renew(leases.keys(), self.ttl * 60)
        store.renew((), self.ttl)
        elapse(self.ttl * 1.1)

        for key, owner in some:
            left = store.left(key, owner, self.ttl)
            assert left is not None
            assert left > 0
            assert store.left(key, "nobody", self.ttl) == 0.0

    def test_one_that_is_named_twice(self, store: RenewingStore) -> None:
        """Is renewed."""
        written(store, Record.first(KEY, {}), labels=Labels("A"))
        store.renew([(KEY, "a"), (OTHER, "a"), (KEY, "a")], self.ttl * 60)

        assert _left(store, "a", 0.0) > 0

    def test_keys_and_owners_are_compared_byte_for_byte(
        self, store: RenewingStore, elapse: Callable[[float], None]
    ) -> None:
        """Whatever they are made of, and whatever they look like one behind the other."""
        for key in ODD_KEYS:
            written(store, Record.first(key, {}), labels=Labels("A"))
        pairs = [(key, owner) for key in ODD_KEYS for owner in OWNERS]
        # No two that may be mixed up get the same length.
        for length in range(LENGTHS):
            store.renew(pairs[length::LENGTHS], self.ttl * 100 * (length + 1))
        elapse(self.ttl)

        left = [store.left(*pair, self.ttl) or 0.0 for pair in pairs]
        lengths = [int(each / self.ttl / 100) for each in left]
        assert lengths == [at % LENGTHS for at in range(len(pairs))]

    def test_damage_is_told(
        self, store: RenewingStore, plant: Callable[[str, bytes], None]
    ) -> None:
        """CorruptRecord with the key where there is no record but something else."""
        for key in (KEY, OTHER):
            written(store, Record.first(key, {}), labels=Labels("A"))
        plant(KEY, b"garbage")
        store.renew([(KEY, "a"), (OTHER, "a")], self.ttl * 60)

        with pytest.raises(CorruptRecord) as raised:
            store.left(KEY, "a", self.ttl * 60)
        assert raised.value.key == KEY
        assert store.left(OTHER, "a", self.ttl * 60)

    def test_those_who_renew_the_same_are_in_nobodys_way(self, store: RenewingStore) -> None:
        """Whatever the order in which each of them names them."""
        leases = [(f"k:{number}", "a") for number in range(300)]
        for key, _ in leases[::100]:
            written(store, Record.first(key, {}), labels=Labels("A"))

        def work(by: int) -> None:
            for _ in range(10):
                store.renew(leases[:: 1 if by % 2 else -1], self.ttl * 60)

        in_threads(4, work)

        for key, owner in leases[::100]:
            assert store.left(key, owner, 0.0)

    def test_a_closed_store_renews_nothing(self, reopen: Reopen) -> None:
        """StoreUnavailable, as for any call."""
        store: Any = reopen()
        store.close()

        with pytest.raises(StoreUnavailable):
            store.renew([(KEY, "a")], 1.0)
        with pytest.raises(StoreUnavailable):
            store.left(KEY, "a", 1.0)


def _left(store: RenewingStore, owner: str, seconds: float) -> float:
    """What is left of the lease of ``owner`` on the record that is there."""
    left = store.left(KEY, owner, seconds)
    assert left is not None
    return left
