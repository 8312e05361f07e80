"""Stores with one fault each, and the test of the contract that catches it.

``test_mutants.py`` runs for each class here the test it names, which must fail, and one test
that must not: the fault is the fault meant, not a store that does nothing at all.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from celery_statekit import record as record_module
from celery_statekit.errors import CorruptRecord
from celery_statekit.record import Change, Limits, Record
from celery_statekit.stores import sqlite, sqlite_file
from celery_statekit.stores.memory import MemoryStore
from celery_statekit.stores.sqlite import SQLiteStore
from celery_statekit.testing import EnumeratesContract, LeasesContract, ManualClock, StoreContract


class Unbroken(StoreContract, LeasesContract, EnumeratesContract):
    """The SQLite store, and what of it a mutant replaces."""

    __test__ = False
    #: Name of the contract's test that must fail.
    caught_by: ClassVar[str] = ""
    store_class: ClassVar[type] = SQLiteStore
    #: What takes the place of names in ``stores.sqlite``.
    instead: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def reopen(
        self, path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Any]:
        for name, value in self.instead.items():
            assert getattr(sqlite, name) != value
            monkeypatch.setattr(sqlite, name, value)
        return lambda limits=None: self.store_class(path, limits, now=clock)

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

    @pytest.fixture
    def reopen(self, place: str, clock: ManualClock) -> Callable[..., Any]:
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
        "NEXT": """INSERT INTO records (key, version, incarnation, expires, text)
            VALUES (:key, :version, :incarnation, :expires, :text)
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
                time.sleep(0.001)  # a busy machine
                row = {**self._row(record, expect, None), "key": record.key}
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
            time.sleep(0.001)  # a busy machine
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
        names = ("version", "incarnation", "writes", "document", "format")
        return Record(key=key, **{name: envelope[name] for name in names})
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


# --- leases and keys -----------------------------------------------------------------------------


class LeasesToEveryone(Unbroken):
    """Who asks last is the holder."""

    caught_by = "test_a_lease_has_one_holder"
    instead: ClassVar = {
        "HOLDER": f"{sqlite.HOLDER} AND 0",
        "ACQUIRE": sqlite.ACQUIRE.partition("WHERE")[0],
    }


class LeasesForEver(Unbroken):
    """A lease ends by release only."""

    caught_by = "test_a_lease_ends"
    instead: ClassVar = {
        "ACQUIRE": sqlite.ACQUIRE.replace("OR leases.until <= :now", ""),
        "LAPSE": sqlite.LAPSE.replace("until <= :now", "until <= :now AND 0"),
    }


class NeverRenewsLeases(Unbroken):
    """One's own lease is granted again and lasts no longer."""

    caught_by = "test_a_holder_renews"
    instead: ClassVar = {
        "ACQUIRE": sqlite.ACQUIRE.replace(
            "until = excluded.until",
            "until = iif(leases.until <= :now, excluded.until, leases.until)",
        )
    }


class RefusesRenewal(Unbroken):
    """The holder is refused like any other."""

    caught_by = "test_a_holder_renews"
    instead: ClassVar = {"ACQUIRE": sqlite.ACQUIRE.replace("leases.owner = excluded.owner OR", "")}


class ProlongsForTheRefused(Unbroken):
    """Who asks in vain makes the lease last."""

    class Store(SQLiteStore):
        def acquire(self, key: str, owner: str, seconds: float) -> bool:
            if super().acquire(key, owner, seconds):
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
        def acquire(self, key: str, owner: str, seconds: float) -> bool:
            holder, until = self._shelf.leases.get(key, (owner, 0.0))
            time.sleep(0.001)  # a busy machine
            if holder != owner and until > self._now():
                return False
            self._shelf.leases[key] = (owner, self._now() + seconds)
            return True

    caught_by = "test_of_many_threads_one_gets_the_lease"
    store_class = Store


class ListsTheExpired(Unbroken):
    """Keys are listed until they are removed."""

    caught_by = "test_only_what_can_be_read_is_listed"
    instead: ClassVar = {"KEYS": sqlite.KEYS.replace("OR expires > :now", "OR 1")}


class ListsByPattern(Unbroken):
    """A prefix is a LIKE pattern: wildcards match, and case does not count."""

    caught_by = "test_keys_of_every_kind_are_listed"
    instead: ClassVar = {
        "KEYS": """SELECT key FROM records WHERE key LIKE :prefix || '%' AND key > :after
            AND (expires IS NULL OR expires > :now) AND :end <> '' ORDER BY key LIMIT :limit"""
    }


class ListsInNoOrder(UnbrokenMemory):
    """Keys come as they were written."""

    class Store(MemoryStore):
        def keys(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
            found = super().keys(prefix, after, 10**6)
            return [key for key in self._shelf.entries if key in found][: max(limit, 0)]

    caught_by = "test_keys_of_a_prefix_in_order"
    store_class = Store


class ListsTheLastAgain(Unbroken):
    """The last key of a page is the first of the next."""

    caught_by = "test_keys_page_by_page"
    instead: ClassVar = {"KEYS": sqlite.KEYS.replace("key > :after", "key >= :after")}
