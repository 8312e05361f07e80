"""Stores with one fault each, and the test of the contract that catches it.

``test_mutants.py`` runs for each class here the test it names, which must fail, and one test
that must not: the fault is the fault meant, not a store that does nothing at all.
"""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from celery_statekit import record as record_module
from celery_statekit.errors import CorruptRecord
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores import memory, sqlite, subscribers
from celery_statekit.stores.base import UNLABELLED, Found, Labels
from celery_statekit.stores.memory import MemoryStore
from celery_statekit.stores.sqlite import SQLiteStore
from celery_statekit.stores.sqlite import file as sqlite_file
from celery_statekit.stores.sqlite import leases as sqlite_leases
from celery_statekit.stores.sqlite import notices as sqlite_notices
from celery_statekit.stores.sqlite import renewals as sqlite_renewals
from celery_statekit.testing import (
    EnumeratesContract,
    LeasesContract,
    ManualClock,
    NotifiesContract,
    RenewsContract,
    StoreContract,
)
from celery_statekit.testing.contract import crowd, notices, turns


class Unbroken(StoreContract, LeasesContract, RenewsContract, EnumeratesContract, NotifiesContract):
    """The SQLite store, and what of it a mutant replaces."""

    __test__ = False
    #: Name of the contract's test that must fail.
    caught_by: ClassVar[str] = ""
    store_class: ClassVar[type] = SQLiteStore
    #: What takes the place of names in the store's modules.
    instead: ClassVar[dict[str, Any]] = {}
    modules: ClassVar[tuple[Any, ...]] = (
        sqlite,
        sqlite_leases,
        sqlite_notices,
        sqlite_renewals,
    )

    @pytest.fixture
    def reopen(self, path: Path, clock: ManualClock, replaced: None) -> Callable[..., Any]:
        return lambda limits=None: self.store_class(path, limits, now=clock)

    @pytest.fixture
    def replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in self.instead.items():
            module = next(module for module in self.modules if hasattr(module, name))
            assert getattr(module, name) != value
            monkeypatch.setattr(module, name, value)
        if self.caught_by:
            # What will not happen need not be waited for so long.
            monkeypatch.setattr(crowd, "PAUSES", (0.05,))
            monkeypatch.setattr(turns, "PATIENCE", 3.0)
            monkeypatch.setattr(notices, "DEADLINE", 2.0)

    @pytest.fixture
    def elapse(self, clock: ManualClock) -> Callable[[float], None]:
        return clock.advance

    @pytest.fixture
    def plant(self, plant_in_sqlite: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_sqlite


class UnbrokenMemory(Unbroken):
    """The memory store, for mutants that are shorter there."""

    shared_between_processes = False
    store_class: ClassVar[type] = MemoryStore
    modules: ClassVar[tuple[Any, ...]] = (memory, subscribers)

    @pytest.fixture
    def reopen(self, place: str, clock: ManualClock, replaced: None) -> Callable[..., Any]:
        return lambda limits=None: self.store_class(place, limits, now=clock)

    @pytest.fixture
    def plant(self, plant_in_memory: Callable[[str, bytes], None]) -> Callable[[str, bytes], None]:
        return plant_in_memory


# --- compare and set -----------------------------------------------------------------------------


class ComparesNothing(Unbroken):
    """The next version is written whatever is there."""

    caught_by = "test_a_stale_write_is_lost"
    instead: ClassVar = {
        "NEXT": """UPDATE records SET version = :version, incarnation = :incarnation,
            expires = :expires, text = :text
            WHERE key = :key AND (expires IS NULL OR expires > :now)"""
    }


class ComparesVersionOnly(Unbroken):
    """ABA: a deleted and recreated record of the same version counts as the one read."""

    caught_by = "test_a_recreated_record_of_the_same_version_is_another"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("AND incarnation = :expected_incarnation", "")}


class ComparesIncarnationOnly(Unbroken):
    """Any version of the same incarnation counts as the one read."""

    caught_by = "test_a_stale_write_is_lost"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("AND version = :expected_version", "")}


class ComparesNotLessThan(Unbroken):
    """A write that expects a later version than there is counts as one that read it."""

    caught_by = "test_a_write_from_the_future_is_lost"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("version = :expected_version", "version <= :expected_version")
    }


class CreatesOverWhatIsThere(Unbroken):
    """``expect=None`` is not looked at."""

    caught_by = "test_a_write_that_expects_nothing_is_lost_where_something_is"
    instead: ClassVar = {"FIRST": sqlite.FIRST.replace("WHERE records.expires <= :now", "")}


class CreatesWhatWasExpected(Unbroken):
    """A write that expects a record which is gone brings it back."""

    caught_by = "test_a_write_that_expects_a_deleted_record_is_lost"
    instead: ClassVar = {
        "NEXT": """INSERT INTO records
            (key, version, incarnation, expires, kind, state, client, since, text)
            VALUES (:key, :version, :incarnation, :expires, :kind, :state, :client, :now, :text)
            ON CONFLICT (key) DO UPDATE SET version = :version, expires = :expires, text = :text
            WHERE version = :expected_version AND incarnation = :expected_incarnation"""
    }


class SaysTrueWhenLost(Unbroken):
    """A lost write is not told."""

    class Store(SQLiteStore):
        def write(self, record: Record, **options: Any) -> bool:
            super().write(record, **options)
            return True

    caught_by = "test_a_stale_write_is_lost"
    store_class = Store


class SaysNothingWhenLost(Unbroken):
    """A lost write is None, which is no answer."""

    class Store(SQLiteStore):
        def write(self, record: Record, **options: Any) -> bool:
            return super().write(record, **options) or None  # type: ignore[return-value]

    caught_by = "test_a_stale_write_is_lost"
    store_class = Store


class ReadsThenWrites(Unbroken):
    """Look, then set: the comparison is made before the transaction."""

    class Store(SQLiteStore):
        def write(self, record: Record, *, expect: Record | None, **options: Any) -> bool:
            current = self.read(record.key)
            if expect is None or not expect.same(current):
                return super().write(record, expect=expect, **options)
            with self._file.connection(record.key) as connection:
                time.sleep(0.01)  # a busy machine
                row = {**self._row(record, expect, None, Labels()), "key": record.key}
                connection.execute(ComparesNothing.instead["NEXT"], row)
            return True

    caught_by = "test_of_many_threads_one_writes_the_next_version"
    store_class = Store


# --- history -------------------------------------------------------------------------------------


class AppendsLater(Unbroken):
    """Changes are written in a transaction of their own, after the record's."""

    class Store(SQLiteStore):
        def write(self, record: Record, *, changes: Sequence[Change] = (), **options: Any) -> bool:
            written = super().write(record, **options)
            time.sleep(0.01)  # a busy machine
            if written:
                with self._file.transaction(record.key) as connection:
                    for change in changes:
                        text = record_module.encode_change(record.key, change).encode()
                        connection.execute(sqlite.APPEND, (record.key, change.number, text))
            return written

    caught_by = "test_record_and_history_are_of_one_moment"
    store_class = Store


class AppendsThoughLost(Unbroken):
    """Changes are written whether the record was or not."""

    class Store(SQLiteStore):
        def write(self, record: Record, *, changes: Sequence[Change] = (), **options: Any) -> bool:
            written = super().write(record, changes=changes, **options)
            if not written:
                with self._file.transaction(record.key) as connection:
                    for change in changes:
                        text = record_module.encode_change(record.key, change).encode()
                        connection.execute(sqlite.APPEND, (record.key, change.number, text))
            return written

    caught_by = "test_a_lost_write_leaves_no_change"
    store_class = Store


class AppendsBeforeItChecks(UnbrokenMemory):
    """The record that is too large is refused after its changes are in."""

    class Store(MemoryStore):
        def write(self, record: Record, *, changes: Sequence[Change] = (), **options: Any) -> bool:
            entry = self._shelf.entries.get(record.key)
            if entry and changes:
                texts = [(c.number, record_module.encode_change(record.key, c)) for c in changes]
                entry.changes = [*entry.changes, *texts]
                return super().write(record, **options)
            return super().write(record, changes=changes, **options)

    caught_by = "test_what_json_has_no_form_for_is_refused"
    store_class = Store


class NeverTrims(Unbroken):
    """History grows for ever."""

    caught_by = "test_history_keeps_the_newest"
    instead: ClassVar = {"TRIM": sqlite.TRIM + " AND 0"}


class TrimsTheNewest(UnbrokenMemory):
    """Over the limit the newest changes go."""

    class Store(MemoryStore):
        def write(self, record: Record, **options: Any) -> bool:
            before = self._shelf.entries.get(record.key)
            written = super().write(record, **options)
            entry = self._shelf.entries.get(record.key)
            kept = self.limits.history_changes
            if written and before and entry and len(before.changes) == kept:
                entry.changes = before.changes
            return written

    caught_by = "test_history_keeps_the_newest"
    store_class = Store


class TrimsOtherKeys(Unbroken):
    """Trimming looks at numbers only."""

    caught_by = "test_histories_of_two_keys_are_two"
    instead: ClassVar = {"TRIM": "DELETE FROM changes WHERE number <= :last AND :key <> ''"}


class IgnoresAfter(Unbroken):
    """Each page of history is the first."""

    caught_by = "test_history_after_a_number"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("AND number > :after", "")}


class IncludesAfter(Unbroken):
    """The last change of a page is the first of the next."""

    caught_by = "test_history_after_a_number"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("number > :after", "number >= :after")}


class IgnoresLimit(Unbroken):
    """History comes whole, however long it is."""

    caught_by = "test_limit_gives_the_oldest"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("LIMIT :limit", "")}


class LimitsToTheNewest(UnbrokenMemory):
    """A page of history is cut at the wrong end."""

    class Store(MemoryStore):
        def history(self, key: str, after: int = 0, limit: int = 100) -> list[Change]:
            changes = super().history(key, after, 10_000)
            return changes[max(len(changes) - max(limit, 0), 0) :]

    caught_by = "test_limit_gives_the_oldest"
    store_class = Store


class NewestFirst(Unbroken):
    """History comes the other way round."""

    caught_by = "test_history_is_in_order_over_writes"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("BY number", "BY number DESC")}


class OrdersByDigits(Unbroken):
    """10 comes before 2."""

    caught_by = "test_more_than_nine_changes_are_in_order"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("BY number", "BY CAST(number AS TEXT)")}


class DeletesTheRecordOnly(UnbrokenMemory):
    """A recreated key has the changes of the deleted one."""

    class Store(MemoryStore):
        ghosts: ClassVar[dict[str, Any]] = {}

        def delete(self, key: str) -> bool:
            entry = self._shelf.entries.get(key)
            self.ghosts[key] = entry.changes if entry else []
            return super().delete(key)

        def write(self, record: Record, **options: Any) -> bool:
            written = super().write(record, **options)
            if written and record.key in self.ghosts:
                self._shelf.entries[record.key].changes[:0] = self.ghosts.pop(record.key)
            return written

    caught_by = "test_delete_takes_the_history_along"
    store_class = Store


# --- expiry --------------------------------------------------------------------------------------


class ReadsTheExpired(Unbroken):
    """An expired record is read until it is removed."""

    caught_by = "test_an_expired_record_is_none"
    instead: ClassVar = {"READ": sqlite.READ.replace("OR expires > :now", "OR 1")}


class ShowsExpiredHistory(Unbroken):
    """The history of an expired record is read until it is removed."""

    caught_by = "test_an_expired_record_is_none"
    instead: ClassVar = {"HISTORY": sqlite.HISTORY.replace("OR expires > :now", "OR 1")}


class WritesOnTheExpired(Unbroken):
    """An expired record can be written on."""

    caught_by = "test_a_write_that_expects_an_expired_record_is_lost"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("OR expires > :now", "OR 1")}


class KeepsExpiredHistory(Unbroken):
    """A new incarnation goes on with the changes of the expired one."""

    caught_by = "test_a_key_begins_anew_after_it_expired"
    instead: ClassVar = {
        "FORGET": sqlite.FORGET + " AND 0",
        "APPEND": sqlite.APPEND.replace("INSERT", "INSERT OR IGNORE"),
    }


class NeverResetsTheTtl(Unbroken):
    """The time to live is that of the first write."""

    caught_by = "test_each_write_counts_its_ttl_from_then"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("expires = :expires", "expires = expires")}


class NeverTakesATtlAway(Unbroken):
    """``ttl=None`` leaves an earlier time to live standing."""

    caught_by = "test_a_write_without_a_ttl_takes_an_earlier_one_away"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("expires = :expires", "expires = ifnull(:expires, expires)")
    }


class NeverShortensATtl(Unbroken):
    """The longest time to live ever given counts."""

    caught_by = "test_a_shorter_ttl_takes_effect"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("expires = :expires", "expires = max(expires, :expires)")
    }


class PurgesWhatLives(Unbroken):
    """Whatever will expire some day is removed after the next write."""

    caught_by = "test_a_record_lives_as_long_as_it_was_given"
    instead: ClassVar = {
        "EXPIRED": "SELECT key FROM records WHERE expires > :now - 1e9 LIMIT :limit",
        "PURGE": "DELETE FROM records WHERE key = :key AND :now",
    }


class DeletesTheExpired(Unbroken):
    """Delete of an expired record says that it was there."""

    caught_by = "test_delete_of_an_expired_record_finds_nothing"
    instead: ClassVar = {"DELETE": sqlite.DELETE.replace("OR expires > :now", "OR 1")}


# --- bytes, text and JSON ------------------------------------------------------------------------


def _unchecked(key: str, text: bytes) -> Record:
    """``decode_record`` without its checksum."""
    with suppress(CorruptRecord):
        return record_module.decode_record(key, text)
    with suppress(ValueError, KeyError, TypeError, UnicodeDecodeError):
        envelope = record_module.load_json(text.decode()[9:])
        names = {"version": "v", "incarnation": "born", "document": "doc"}
        return Record(key=key, **{name: envelope[stored] for name, stored in names.items()})
    raise CorruptRecord(key, "no JSON")


class ChecksNoChecksum(Unbroken):
    """What is JSON is believed."""

    caught_by = "test_one_changed_byte_is_told"
    instead: ClassVar = {"decode_record": _unchecked}


class ReadsDamageAsNothing(Unbroken):
    """A corrupt record is None, so the next writer begins anew."""

    class Store(SQLiteStore):
        def read(self, key: str) -> Record | None:
            try:
                return super().read(key)
            except CorruptRecord:
                return None

    caught_by = "test_damage_is_told_and_never_read_as_something_else"
    store_class = Store


class AcceptsAnySize(Unbroken):
    """The limit is not looked at."""

    caught_by = "test_one_byte_over_the_limit_is_refused"
    instead: ClassVar = {
        "encode_record": lambda record, _: record_module.encode_record(
            record, Limits(record_bytes=10**9)
        )
    }


class RefusesTheLimitItself(Unbroken):
    """A record of exactly the limit is refused."""

    caught_by = "test_a_record_of_exactly_the_limit_is_written"
    instead: ClassVar = {
        "encode_record": lambda record, limits: record_module.encode_record(
            record, replace(limits, record_bytes=limits.record_bytes - 1)
        )
    }


class CountsCharacters(Unbroken):
    """The limit is one of characters."""

    caught_by = "test_size_is_counted_in_bytes"
    instead: ClassVar = {
        "encode_record": lambda record, limits: record_module.encode_record(
            record, replace(limits, record_bytes=limits.record_bytes * 4)
        )
    }


class WritesNewerFormats(Unbroken):
    """A record of a newer release is written back in our format."""

    caught_by = "test_a_newer_format_can_be_read_but_not_written_back"
    instead: ClassVar = {
        "encode_record": lambda record, limits: record_module.encode_record(
            replace(record, format=1), limits
        )
    }


class DropsUnknownFields(Unbroken):
    """Fields of a newer release are lost when a record is written back."""

    caught_by = "test_fields_it_does_not_know_are_kept"
    instead: ClassVar = {
        "encode_record": lambda record, limits: record_module.encode_record(
            replace(record, extra={}), limits
        )
    }


def _through_lua(value: Any) -> Any:
    """``value`` after Redis's cjson has had it: empty lists are objects, numbers have 14 digits."""
    if isinstance(value, dict):
        return {name: _through_lua(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_through_lua(inner) for inner in value] or {}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(f"{value:.14g}")
        return int(number) if number.is_integer() else number
    return value


class GoesThroughLua(Unbroken):
    """The document is taken apart and put together by another language."""

    caught_by = "test_json_is_read_as_written"
    instead: ClassVar = {
        "encode_record": lambda record, limits: record_module.encode_record(
            replace(record, document=_through_lua(record.document)), limits
        )
    }


class SharesDocuments(UnbrokenMemory):
    """What was written is kept as the object it is."""

    class Store(MemoryStore):
        kept: ClassVar[dict[str, Record]] = {}

        def read(self, key: str) -> Record | None:
            record = super().read(key)
            kept = self.kept.get(key)
            return kept if record and record.same(kept) else record

        def write(self, record: Record, **options: Any) -> bool:
            written = super().write(record, **options)
            if written:
                self.kept[record.key] = record
            return written

    caught_by = "test_a_document_may_be_changed_after_it_was_written"
    store_class = Store


class _Folding(MemoryStore):
    """Takes keys for the same that ``fold`` makes the same."""

    fold: ClassVar[Callable[[str], str]]

    def read(self, key: str) -> Record | None:
        record = super().read(type(self).fold(key))
        return record and replace(record, key=key)

    def write(self, record: Record, **options: Any) -> bool:
        return super().write(replace(record, key=type(self).fold(record.key)), **options)


class FoldsCase(UnbrokenMemory):
    """Keys that differ by case are one, as in MySQL's default collation."""

    class Store(_Folding):
        fold = str.lower

    caught_by = "test_no_key_is_taken_for_another"
    store_class = Store


class NormalisesKeys(UnbrokenMemory):
    """Keys that look the same are one."""

    class Store(_Folding):
        fold = staticmethod(lambda key: unicodedata.normalize("NFC", key))

    caught_by = "test_no_key_is_taken_for_another"
    store_class = Store


class StripsKeys(UnbrokenMemory):
    """Keys that differ by spaces at the end are one, as in SQL's CHAR."""

    class Store(_Folding):
        fold = str.rstrip

    caught_by = "test_no_key_is_taken_for_another"
    store_class = Store


# --- open, closed, forked ------------------------------------------------------------------------


class WorksWhenClosed(Unbroken):
    """Close does nothing."""

    class Store(SQLiteStore):
        def close(self) -> None:
            self._file.close_idle()

    caught_by = "test_a_closed_store_says_so"
    store_class = Store


class OpenAcrossForks(Unbroken):
    """Connections stay open over a fork; the child only takes care never to touch them."""

    class File(sqlite_file.SQLiteFile):
        def close_idle(self) -> None:
            if self._closed:
                super().close_idle()

        def after_fork(self) -> None:
            sqlite_file._graveyard.extend(self._idle)
            self._idle = []
            super().after_fork()

    caught_by = "test_a_child_does_not_depend_on_its_parent"
    instead: ClassVar = {"SQLiteFile": File}


class SharesConnectionsAcrossForks(Unbroken):
    """The child goes on with the connections of its parent."""

    class File(sqlite_file.SQLiteFile):
        def close_idle(self) -> None:
            if self._closed:
                super().close_idle()

        def after_fork(self) -> None:
            idle, self._idle = self._idle, []
            super().after_fork()
            self._idle = idle

    caught_by = "test_a_child_does_not_depend_on_its_parent"
    instead: ClassVar = {"SQLiteFile": File}


class SilentInAChild(UnbrokenMemory):
    """A memory store in a forked child is a copy that nobody else sees."""

    class Store(MemoryStore):
        @property
        def _shelf(self) -> Any:
            return self._shelf_or_none

    caught_by = "test_a_store_never_used_may_be_forked"
    store_class = Store


# --- leases --------------------------------------------------------------------------------------


class LeasesToEveryone(Unbroken):
    """Who asks last is the holder."""

    caught_by = "test_a_lease_has_one_holder"
    instead: ClassVar = {
        "STANDING": sqlite_leases.STANDING.replace("until > :now", "until > :now AND 0"),
        "ACQUIRE": sqlite_leases.ACQUIRE.partition("WHERE leases.owner")[0],
    }


class LeasesForEver(Unbroken):
    """A lease ends by release only."""

    caught_by = "test_a_lease_ends"
    instead: ClassVar = {
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("OR leases.until <= :now", ""),
        "LAPSE": sqlite_leases.LAPSE.replace("until <= :now", "until <= :now AND 0"),
    }


class NeverRenewsLeases(Unbroken):
    """One's own lease is granted again and lasts no longer."""

    caught_by = "test_a_holder_renews"
    instead: ClassVar = {
        "ACQUIRE": sqlite_leases.ACQUIRE.replace(
            "until = excluded.until",
            "until = iif(leases.until <= :now, excluded.until, leases.until)",
        )
    }


class RefusesRenewal(Unbroken):
    """The holder is refused like any other."""

    caught_by = "test_a_holder_renews"
    instead: ClassVar = {
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("leases.owner = excluded.owner OR", "")
    }


class ProlongsForTheRefused(Unbroken):
    """Who asks in vain makes the lease last."""

    class Store(SQLiteStore):
        def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
            if super().acquire(key, owner, seconds, wait):
                return True
            with self._file.transaction(key) as connection:
                until = self._now() + seconds
                connection.execute("UPDATE leases SET until = ? WHERE key = ?", (until, key))
            return False

    caught_by = "test_who_was_refused_did_not_make_it_last"
    store_class = Store


class ReleasesForAnyone(Unbroken):
    """Whoever asks, the lease is given back."""

    caught_by = "test_only_the_holder_releases"
    instead: ClassVar = {"RELEASE": "DELETE FROM leases WHERE key = :key AND :owner <> ''"}


class DeletesTheLeaseToo(Unbroken):
    """The lease ends with the record."""

    class Store(SQLiteStore):
        def delete(self, key: str) -> bool:
            with self._file.transaction(key) as connection:
                connection.execute("DELETE FROM leases WHERE key = ?", (key,))
            return super().delete(key)

    caught_by = "test_a_lease_is_no_record"
    store_class = Store


class LeasesByLooking(UnbrokenMemory):
    """Look, then set: two who ask at once are both the holder."""

    class Store(MemoryStore):
        def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
            holder, until = self._shelf.leases.get(key, (owner, 0.0))
            time.sleep(0.01)  # a busy machine
            if holder != owner and until > self._now():
                return False
            self._shelf.leases[key] = (owner, self._now() + seconds)
            return True

    caught_by = "test_of_many_threads_one_gets_the_lease"
    store_class = Store


class RefusesWhoWouldWait(Unbroken):
    """Nobody waits: who cannot have it at once is refused."""

    class Store(SQLiteStore):
        def acquire(self, key: str, owner: str, seconds: float, wait: float = 0.0) -> bool:
            return super().acquire(key, owner, seconds)

    caught_by = "test_one_at_a_time"
    store_class = Store


class WaitersGetItByLuck(Unbroken):
    """Whoever looks first, once the lease is free, has it."""

    caught_by = "test_threads_get_it_in_the_order_in_which_they_came"
    instead: ClassVar = {
        "STANDING": sqlite_leases.STANDING.replace("number < :number", ":number IS NULL"),
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("number < :number", ":number IS NULL"),
    }


class LastComesFirst(Unbroken):
    """A stack, not a queue."""

    caught_by = "test_processes_get_it_in_the_order_in_which_they_came"
    instead: ClassVar = {
        "STANDING": sqlite_leases.STANDING.replace("number < :number", "number > :number"),
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("number < :number", "number > :number"),
    }


class NewcomersOvertake(Unbroken):
    """Who asks at the right moment does not see those who wait."""

    caught_by = "test_who_comes_while_others_wait_is_refused"
    instead: ClassVar = {"_LAST": 0}


class EndedHoldersOvertake(Unbroken):
    """Who held the lease before it ended may have it again at once."""

    caught_by = "test_who_held_it_before_goes_behind"
    instead: ClassVar = {
        "STANDING": sqlite_leases.STANDING.replace("AND until > :now", ""),
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("AND until > :now", ""),
        "LAPSE": f"{sqlite_leases.LAPSE} AND 0",
    }


class HoldersQueueUp(Unbroken):
    """Who renews goes behind those who wait."""

    caught_by = "test_a_holder_renews_while_others_wait"
    instead: ClassVar = {
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("WHERE EXISTS", "WHERE 0 AND EXISTS")
    }


class OneQueueForAll(Unbroken):
    """Who waits for one key is in the way of all keys."""

    caught_by = "test_those_who_wait_for_another_key_are_in_nobodys_way"
    instead: ClassVar = {
        "STANDING": sqlite_leases.STANDING.replace("key = :key AND number", "number"),
        "ACQUIRE": sqlite_leases.ACQUIRE.replace("key = :key AND number", "number"),
    }


class NeverLeavesTheQueue(Unbroken):
    """Who has given up keeps its place."""

    caught_by = "test_waiting_in_vain"
    instead: ClassVar = {"LEAVE": f"{sqlite_leases.LEAVE} AND 0"}


class TheDeadQueueOn(Unbroken):
    """A killed process keeps its place."""

    caught_by = "test_who_is_killed_while_it_waits_is_passed_over"
    instead: ClassVar = {"DEAD": 1e6}


class BuriesTheLiving(Unbroken):
    """Who waits for long loses its place."""

    caught_by = "test_who_waits_for_long_keeps_its_place"
    instead: ClassVar = {"RENEW": 1e6}


# --- renewals ------------------------------------------------------------------------------------


class LeasesOnlyWhatIsRenewed(Unbroken):
    """Who has not renewed yet counts as dead."""

    caught_by = "test_a_record_is_leased_from_its_label_on"
    instead: ClassVar = {"LEFT": sqlite_renewals.LEFT.replace("since + :seconds", ":seconds - 1e9")}


class IgnoresRenewals(Unbroken):
    """Who renews counts as dead all the same."""

    caught_by = "test_a_renewal_prolongs"
    instead: ClassVar = {"LEFT": sqlite_renewals.LEFT.replace("SELECT until", "SELECT 0.0")}


class RenewsForAnyone(Unbroken):
    """Whoever renews, each owner of the record lives on."""

    caught_by = "test_another_owner_prolongs_nothing"
    instead: ClassVar = {
        "LEFT": sqlite_renewals.LEFT.replace("SELECT until", "SELECT max(until)").replace(
            "alive.owner = :owner", ":owner IS NOT NULL"
        )
    }


class RenewsAllOfAnOwner(Unbroken):
    """Who renews one record keeps all of its own."""

    caught_by = "test_another_owner_prolongs_nothing"
    instead: ClassVar = {
        "LEFT": sqlite_renewals.LEFT.replace("SELECT until", "SELECT max(until)").replace(
            "alive.key = :key AND", ""
        )
    }


class RenewsForOneAtATime(UnbrokenMemory):
    """Who renews ends the lease of who did so before."""

    class Store(MemoryStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            alive, keys = self._shelf.alive, {key for key, _ in leases}
            for lease in [lease for lease in alive if lease[0] in keys]:
                del alive[lease]
            super().renew(leases, seconds)

    caught_by = "test_another_owner_ends_nothing"
    store_class = Store


class RenewsByTheHostsClock(Unbroken):
    """A renewal lasts until a moment of the caller's clock."""

    class Store(SQLiteStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            super().renew(leases, time.time() + seconds - self._now())

    caught_by = "test_a_renewal_ends"
    store_class = Store


class TellsByTheHostsClock(Unbroken):
    """What is left is counted by the caller's clock."""

    class Store(SQLiteStore):
        def left(self, key: str, owner: str, seconds: float) -> float | None:
            left = super().left(key, owner, seconds)
            return left and max(left + self._now() - time.time(), 0.0)

    caught_by = "test_a_record_is_leased_from_its_label_on"
    store_class = Store


class LivesOnByAnyWrite(Unbroken):
    """A write with the same label begins the lease again."""

    caught_by = "test_the_same_label_does_not_begin_it_again"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("iif(state = :state, since, :now)", "ifnull(:now, since)")
    }


class NeverRenewsForLess(Unbroken):
    """The latest end ever given counts."""

    caught_by = "test_the_newest_renewal_counts"
    instead: ClassVar = {
        "PROLONG": sqlite_renewals.PROLONG.replace(
            "= excluded.until", "= max(until, excluded.until)"
        )
    }


class RenewalsReplaceTheLabel(Unbroken):
    """Once renewed, the moment of the label counts no more."""

    caught_by = "test_a_renewal_does_not_cut_short_what_the_label_gives"
    instead: ClassVar = {
        "LEFT": """SELECT version, incarnation, text, ifnull(
                (SELECT until FROM alive WHERE alive.key = :key AND alive.owner = :owner),
                since + :seconds)
            FROM records WHERE key = :key AND (expires IS NULL OR expires > :now)"""
    }


class LessThanNothingIsLeft(Unbroken):
    """What has ended is told as a time below nothing."""

    class Store(SQLiteStore):
        def left(self, key: str, owner: str, seconds: float) -> float | None:
            return super().left(key, owner, seconds + 100.0) and (
                (super().left(key, owner, seconds + 100.0) or 0.0) - 100.0
            )

    caught_by = "test_a_lease_that_nobody_renews_ends"
    store_class = Store


class LeasesTheExpired(Unbroken):
    """An expired record is leased until it is removed."""

    caught_by = "test_of_no_record_nothing_is_left"
    instead: ClassVar = {"LEFT": sqlite_renewals.LEFT.replace("OR expires > :now", "OR 1")}


class RenewsOnlyWhatIsThere(Unbroken):
    """Who renews before the record is written has not."""

    class Store(SQLiteStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            super().renew([lease for lease in leases if self.read(lease[0])], seconds)

    caught_by = "test_who_renews_before_there_is_a_record"
    store_class = Store


class RenewsTheFirstThousand(Unbroken):
    """Of many the last are left out."""

    class Store(SQLiteStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            super().renew(list(leases)[:1000], seconds)

    caught_by = "test_many_at_once"
    store_class = Store


class JoinsKeyAndOwner(UnbrokenMemory):
    """Two pairs are one where one text follows from both."""

    class Store(MemoryStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            super().renew([(f"{key}|{owner}", "") for key, owner in leases], seconds)

        def left(self, key: str, owner: str, seconds: float) -> float | None:
            until = self._shelf.alive.get((f"{key}|{owner}", ""), 0.0)
            left = super().left(key, owner, seconds)
            return None if left is None else max(left, until - self._now())

    caught_by = "test_keys_and_owners_are_compared_byte_for_byte"
    store_class = Store


class CutsOwners(Unbroken):
    """Of an owner's name the first 255 characters count."""

    class Store(SQLiteStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            super().renew([(key, owner[:255]) for key, owner in leases], seconds)

        def left(self, key: str, owner: str, seconds: float) -> float | None:
            return super().left(key, owner[:255], seconds)

    caught_by = "test_keys_and_owners_are_compared_byte_for_byte"
    store_class = Store


class RenewsInItsOwnObject(UnbrokenMemory):
    """Another store object of the same place sees no renewal."""

    class Store(MemoryStore):
        def renew(self, leases: Collection[tuple[str, str]], seconds: float) -> None:
            self.mine = dict.fromkeys(leases, self._now() + seconds)

        def left(self, key: str, owner: str, seconds: float) -> float | None:
            left, until = super().left(key, owner, seconds), self.__dict__.get("mine", {})
            return left and max(left, until.get((key, owner), 0.0) - self._now())

    caught_by = "test_a_renewal_outlives_who_made_it"
    store_class = Store


class TakesDamageForTheDead(Unbroken):
    """Of what is no record nothing is left."""

    class Store(SQLiteStore):
        def left(self, key: str, owner: str, seconds: float) -> float | None:
            with suppress(CorruptRecord):
                return super().left(key, owner, seconds)
            return None

    caught_by = "test_damage_is_told"
    store_class = Store


# --- listings ------------------------------------------------------------------------------------


class ListsTheExpired(Unbroken):
    """Records are listed until they are removed."""

    caught_by = "test_only_what_can_be_read_is_listed"
    instead: ClassVar = {"FIND": sqlite.FIND.replace("OR expires > :now", "OR 1")}


class CountsTheExpired(Unbroken):
    """Records are counted until they are removed."""

    caught_by = "test_only_what_can_be_read_is_listed"
    instead: ClassVar = {"COUNT": sqlite.COUNT.replace("OR expires > :now", "OR 1")}


class ListsByKey(Unbroken):
    """In order of keys, however long they stand."""

    caught_by = "test_those_that_stand_longest_come_first"
    instead: ClassVar = {"FIND": sqlite.FIND.replace("since {way}, key {way}", "key {way}")}


class ListsTiesInNoOrder(Unbroken):
    """Records of one moment come in the order of their writes."""

    caught_by = "test_those_of_one_moment_come_in_order_of_their_keys"
    instead: ClassVar = {"FIND": sqlite.FIND.replace("key {way}", "rowid {way}")}


class ListsTheLastAgain(Unbroken):
    """The last record of a page is the first of the next."""

    caught_by = "test_page_by_page"
    instead: ClassVar = {
        "AFTER": {
            way: f"{cut[:17]}{cut[17:].replace('>', '>=').replace('<', '<=')}"
            for way, cut in sqlite.AFTER.items()
        }
    }


class PagesByMomentOnly(Unbroken):
    """Of the records of one moment a page that ends among them hides the rest."""

    caught_by = "test_page_by_page"
    instead: ClassVar = {"AFTER": {"ASC": " AND since > :since", "DESC": " AND since < :since"}}


class PagesByTheRecordItself(Unbroken):
    """The next page begins behind a record, and not at all where that is gone."""

    caught_by = "test_a_page_goes_on_where_the_last_one_is_gone"
    instead: ClassVar = {
        "AFTER": {
            way: f"{cut} AND EXISTS (SELECT 1 FROM records WHERE key = :after)"
            for way, cut in sqlite.AFTER.items()
        }
    }


class PagesByNumber(UnbrokenMemory):
    """The next page begins where as many records are skipped as were there before."""

    class Store(MemoryStore):
        def find(
            self, kind: str, *, after: Any = None, limit: int = 100, **only: Any
        ) -> list[Found]:
            whole = super().find(kind, limit=10**6, **only)
            start = self.given if after else 0
            self.given = start + limit
            return whole[start : start + limit]

    caught_by = "test_pages_while_records_move"
    store_class = Store


class ListsAtMostSomeHundred(Unbroken):
    """What is behind the store's own limit is nowhere."""

    caught_by = "test_many_records"
    instead: ClassVar = {"_count": lambda limit: max(min(limit, 250), 0)}


class TakesLessThanNothingForAll(Unbroken):
    """A limit of -1 is none."""

    caught_by = "test_a_limit_that_is_not_positive_gives_nothing"
    instead: ClassVar = {"_count": int}


class ListsTheYoung(Unbroken):
    """Age is not looked at."""

    caught_by = "test_older_than"
    instead: ClassVar = {"OLDER": ""}


class TakesBlankForAny(Unbroken):
    """An empty label is as good as none."""

    class Store(SQLiteStore):
        def find(self, kind: str, *, client: str | None = None, **only: Any) -> list[Found]:
            return super().find(kind, client=client or None, **only)

    caught_by = "test_by_state_and_by_client"
    store_class = Store


class ListsAnyClient(Unbroken):
    """With a state, the client is not looked at."""

    class Store(SQLiteStore):
        def find(
            self, kind: str, *, state: str | None = None, client: str | None = None, **only: Any
        ) -> list[Found]:
            return super().find(kind, state=state, client=None if state else client, **only)

    caught_by = "test_by_state_and_by_client"
    store_class = Store


class ListsByPattern(Unbroken):
    """A label is a LIKE pattern: wildcards match, and case does not count."""

    caught_by = "test_labels_of_every_kind"
    instead: ClassVar = {"OF_STATE": " AND state LIKE :state"}


class ListsByTrimmedLabels(Unbroken):
    """Labels that differ by spaces at the end are one, as in SQL's CHAR."""

    caught_by = "test_labels_of_every_kind"
    instead: ClassVar = {"OF_CLIENT": " AND client = :client COLLATE RTRIM"}


class MixesKinds(Unbroken):
    """A kind is a prefix."""

    caught_by = "test_kinds_never_mix"
    instead: ClassVar = {
        "FIND": sqlite.FIND.replace("kind = :kind", "substr(key, 1, length(:kind)) = :kind")
    }


class CountsAllKinds(Unbroken):
    """A kind is a pattern."""

    caught_by = "test_kinds_never_mix"
    instead: ClassVar = {"COUNT": sqlite.COUNT.replace("kind = :kind", "kind GLOB :kind")}


class TakesTheFirstPartForTheKind(Unbroken):
    """A kind is all before the first colon."""

    caught_by = "test_kinds_never_mix"
    instead: ClassVar = {"kind_of": lambda key: key.partition(":")[0] if ":" in key else ""}


class NeverYounger(Unbroken):
    """``since`` is that of the first write."""

    caught_by = "test_a_move_resets_since"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("iif(state = :state, since, :now)", "since")}


class YoungerWithEachWrite(Unbroken):
    """``since`` is that of the last write."""

    caught_by = "test_a_write_with_the_same_label_keeps_since"
    instead: ClassVar = {"NEXT": sqlite.NEXT.replace("iif(state = :state, since, :now)", ":now")}


class YoungerWithAnotherClient(Unbroken):
    """Any other label resets ``since``."""

    caught_by = "test_another_client_label_keeps_since"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("iif(state = :state", "iif(state = :state AND client = :client")
    }


class AsOldAsTheExpired(Unbroken):
    """A new incarnation stands as long as the expired one would."""

    caught_by = "test_a_key_that_begins_anew_stands_anew"
    instead: ClassVar = {
        "FIRST": sqlite.FIRST.replace("since = excluded.since", "since = records.since")
    }


class KeepsLabelsNobodyGives(Unbroken):
    """A write without labels leaves those of before."""

    caught_by = "test_a_write_without_labels_takes_them_away"
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("state = :state,", "state = ifnull(nullif(:state, ''), state),")
    }


class LabelsThoughLost(Unbroken):
    """A write that is lost moves the record all the same."""

    class Store(SQLiteStore):
        def write(self, record: Record, *, labels: Labels = UNLABELLED, **options: Any) -> bool:
            written = super().write(record, labels=labels, **options)
            if not written:
                _label(self, record.key, labels)
            return written

    caught_by = "test_a_lost_write_moves_nothing"
    store_class = Store


class LabelsLater(Unbroken):
    """Labels are written in a transaction of their own, after the record's."""

    class Store(SQLiteStore):
        def write(self, record: Record, *, labels: Labels = UNLABELLED, **options: Any) -> bool:
            written = super().write(record, labels=labels, **options)
            time.sleep(0.01)  # a busy machine
            if written:
                _label(self, record.key, labels)
            return written

    caught_by = "test_listings_while_others_write"
    store_class = Store
    instead: ClassVar = {
        "NEXT": sqlite.NEXT.replace("state = :state,", "state = state,").replace(
            "iif(state = :state, since, :now)", "since"
        )
    }


def _label(store: SQLiteStore, key: str, labels: Labels) -> None:
    with store._file.transaction(key) as connection:
        connection.execute(
            "UPDATE records SET state = ?, client = ? WHERE key = ?",
            (labels.state, labels.client, key),
        )


class HidesDamage(Unbroken):
    """What cannot be read is not listed."""

    class Store(SQLiteStore):
        def find(self, kind: str, **only: Any) -> list[Found]:
            found = []
            for each in super().find(kind, **only):
                with suppress(CorruptRecord):
                    each.record()
                    found.append(each)
            return found

    caught_by = "test_damage_does_not_hide_the_others"
    store_class = Store


class BreaksAtDamage(Unbroken):
    """What cannot be read hides all the others."""

    class Store(SQLiteStore):
        def find(self, kind: str, **only: Any) -> list[Found]:
            found = super().find(kind, **only)
            return [each for each in found if each.record()]

    caught_by = "test_damage_does_not_hide_the_others"
    store_class = Store


# --- notices -------------------------------------------------------------------------------------


class SaysNothingOfDeletions(UnbrokenMemory):
    """Only what is written wakes."""

    class Store(MemoryStore):
        def delete(self, key: str) -> bool:
            return self._shelf.entries.pop(key, None) is not None

    caught_by = "test_each_write_and_each_deletion_wakes"
    store_class = Store


class LooksAtVersionsOnly(Unbroken):
    """A recreated record of the same version is no news."""

    caught_by = "test_a_key_that_begins_anew_at_once_wakes"
    instead: ClassVar = {"VERSION": sqlite_notices.VERSION.replace(", incarnation", "")}


class WakesBeforeItWrites(UnbrokenMemory):
    """Who reads when woken reads what was there before."""

    class Store(MemoryStore):
        def write(self, record: Record, **options: Any) -> bool:
            shelf = self._shelf
            shelf.tell(record.key)
            told, shelf.subscribers = shelf.subscribers, set()
            try:
                return super().write(record, **options)
            finally:
                shelf.subscribers = told

    caught_by = "test_what_was_written_can_be_read_when_it_wakes"
    store_class = Store


class SubscribesLater(UnbrokenMemory):
    """``subscribe`` returns before it is true."""

    class Store(MemoryStore):
        def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
            timer = threading.Timer(0.05, super().subscribe, (key, wake))
            timer.start()
            return timer.cancel

    caught_by = "test_it_wakes_from_the_return_of_subscribe_on"
    store_class = Store


class WakesEveryone(UnbrokenMemory):
    """Each write wakes all who wait for any key."""

    class All(subscribers.Subscribers):
        def wake(self, key: str) -> None:
            for each in self.keys():
                super().wake(each)

    caught_by = "test_other_keys_do_not_matter"
    instead: ClassVar = {"Subscribers": All}


class WakesByCase(UnbrokenMemory):
    """Keys that differ by case are one subscription's key, and some are nobody's."""

    class Folded(subscribers.Subscribers):
        def wake(self, key: str) -> None:
            super().wake(key.lower().strip())

    caught_by = "test_keys_of_every_kind_wake"
    instead: ClassVar = {"Subscribers": Folded}


class TellsItsOwnWritesOnly(Unbroken):
    """What other processes write wakes nobody."""

    class Store(SQLiteStore):
        def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
            return self._notices._subscribers.add(key, wake)

        def write(self, record: Record, **options: Any) -> bool:
            written = super().write(record, **options)
            self._notices._subscribers.wake(record.key)
            return written

    caught_by = "test_another_process_wakes_us"
    store_class = Store


class NeverUnsubscribes(UnbrokenMemory):
    """Who has had enough is woken on."""

    class Store(MemoryStore):
        def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
            super().subscribe(key, wake)
            return lambda: None

    caught_by = "test_who_has_unsubscribed_is_not_woken"
    store_class = Store


class UnsubscribesAllOfAKey(UnbrokenMemory):
    """The end of one subscription is the end of all to the same key."""

    class Store(MemoryStore):
        def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
            super().subscribe(key, wake)
            return lambda: self._subscribers._wakes.pop(key, {}).clear()

    caught_by = "test_who_subscribes_twice_has_two_subscriptions"
    store_class = Store


class WakesTheFirstOnly(UnbrokenMemory):
    """Of several who wait for a key one is woken."""

    class First(subscribers.Subscribers):
        def wake(self, key: str) -> None:
            for wake in list(self._wakes.get(key, {}).values())[:1]:
                self._call(key, wake)

    caught_by = "test_many_subscribers"
    instead: ClassVar = {"Subscribers": First}


class LooksForEachSubscriber(Unbroken):
    """Each subscription has a thread and a connection of its own."""

    class Store(SQLiteStore):
        all_notices: ClassVar[list[sqlite_notices.SQLiteNotices]] = []

        def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
            notices = sqlite_notices.SQLiteNotices(self._file)
            self.all_notices.append(notices)
            return notices.subscribe(key, wake)

        def close(self) -> None:
            for own in self.all_notices:
                own.close()
            super().close()

    caught_by = "test_many_subscribers"
    store_class = Store


class LetsSubscribersRaise(UnbrokenMemory):
    """What a subscriber raises comes out of the write, and those behind it are not woken."""

    class Raising(subscribers.Subscribers):
        def _call(self, key: str, wake: Callable[[], None]) -> None:
            wake()

    caught_by = "test_a_subscriber_that_raises_hurts_nobody"
    instead: ClassVar = {"Subscribers": Raising}


class SleepsAfterAFork(Unbroken):
    """A child takes its parent's thread for its own."""

    class Notices(sqlite_notices.SQLiteNotices):
        def after_fork(self) -> None:
            sqlite_file.SQLiteFile.after_fork(self)

    caught_by = "test_parent_and_child_are_woken_after_a_fork"
    instead: ClassVar = {"SQLiteNotices": Notices}


class WakesWhenClosed(UnbrokenMemory):
    """Subscriptions outlive their store."""

    class Store(MemoryStore):
        def close(self) -> None:
            self._shelf_or_none = None

    caught_by = "test_a_closed_store_wakes_nobody"
    store_class = Store


class MissesWhatWasWrittenMeanwhile(Unbroken):
    """What is written next after something was told of is not told of."""

    class Notices(sqlite_notices.SQLiteNotices):
        told = False

        def _look(self) -> list[str]:
            changed = super()._look()
            if changed:
                self.told = not self.told
            return changed if self.told else []

    caught_by = "test_who_subscribes_and_then_reads_misses_nothing"
    instead: ClassVar = {"SQLiteNotices": Notices}
