"""Leases in a table, and the queue of those who wait for one.

Who waits draws a ticket, and looks whether the lease is its own by now: who gives it back hands it
to the lowest ticket. One that was not given back goes to who finds it ended with no lower ticket
alive. A ticket lives for a second and is renewed by who waits, so that the dead are passed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from celery_statekit.errors import StoreError
from celery_statekit.stores.sql.server import Session
from celery_statekit.stores.sql.tables import microseconds, name_bytes

T = TypeVar("T")

#: Seconds for which a ticket lives, and after which its owner renews it.
LIVES: Final = 0.9
RENEWED: Final = 0.3
#: Seconds for which a lease is handed over at most; who wants it for longer renews it.
GIVEN: Final = 1.0
#: Seconds between two looks: a part of the time that the queue takes, at its pace so far, until it
#: is one's turn. Many who look often would take the processor from the one who holds the lease.
PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.1
PART: Final = 0.3
#: Behind every ticket.
NO_TICKET: Final = 2**63 - 1

_TURN: Final = """NOT EXISTS (
        SELECT 1 FROM {tables}_waiters AS waiters
        WHERE waiters.name = %(name)s AND waiters.ticket < %(ticket)s
            AND waiters.until > {moment})"""
TAKE: Final = """
    UPDATE {tables}_leases SET until = {moment} + %(lasts)s, owner = %(owner)s
    WHERE name = %(name)s AND (
        (owner = %(owner)s AND until > {moment}) OR (until <= {moment} AND its_turn))
    """.replace("its_turn", _TURN)
#: A lease that was never given.
TAKE_FREE: Final = """
    INSERT {ignore} INTO {tables}_leases (name, owner, until)
    SELECT %(name)s, %(owner)s, {moment} + %(lasts)s {from_nothing} WHERE its_turn {unless_there}
    """.replace("its_turn", _TURN)
_NEXT: Final = """(
        SELECT waiters.wanted FROM {tables}_waiters AS waiters
        WHERE waiters.name = %(name)s AND waiters.until > {moment}
        ORDER BY waiters.ticket LIMIT 1)"""
#: To who is next, or else to nobody.
RELEASE: Final = (
    (
        """
    UPDATE {tables}_leases
    SET until = COALESCE({moment} + next_given, 0), owner = COALESCE(next_owner, '')
    WHERE name = %(name)s AND owner = %(owner)s"""
    )
    .replace("next_given", _NEXT.replace("wanted", "given"))
    .replace("next_owner", _NEXT.replace("wanted", "owner"))
)
CLEAR: Final = "DELETE FROM {tables}_leases WHERE name = %(name)s AND until = 0"
DRAW: Final = """
    INSERT INTO {tables}_waiters (name, owner, given, until)
    VALUES (%(name)s, %(owner)s, %(given)s, {moment} + %(lives)s)
    {returning_ticket}"""
LOOK: Final = """
    SELECT
        (SELECT count(*) FROM {tables}_waiters AS waiters
            WHERE waiters.name = %(name)s AND waiters.ticket < %(ticket)s
                AND waiters.until > {now}),
        (SELECT leases.owner FROM {tables}_leases AS leases
            WHERE leases.name = %(name)s AND leases.until > {now})"""
RENEW: Final = """
    UPDATE {tables}_waiters SET until = {moment} + %(lives)s WHERE ticket = %(ticket)s"""
LEAVE: Final = "DELETE FROM {tables}_waiters WHERE ticket = %(ticket)s"
#: What ended a minute ago: nobody can still be about to renew it.
PURGE: Final = (
    "DELETE FROM {tables}_leases WHERE until <= {now} - 60000000",
    "DELETE FROM {tables}_waiters WHERE until <= {now} - 60000000",
)


class Call(Protocol):
    """How a store runs statements."""

    def __call__(
        self, key: str, work: Callable[[Session], T], *, writes: bool = ..., atomic: bool = ...
    ) -> T:
        """What ``work`` returns."""
        ...


class LeaseTable:
    """The leases of one store.

    Args:
        call: how the store runs statements.
        sql: a statement as its dialect has it.
    """

    def __init__(self, call: Call, sql: Callable[[str], str]) -> None:
        self._call = call
        self._sql = sql

    def acquire(self, key: str, owner: str, seconds: float, wait: float) -> bool:
        """Make ``owner`` the holder if nobody else holds it and nobody waits."""
        row = {
            "name": name_bytes(key),
            "owner": _owner(owner),
            "lasts": microseconds(seconds),
            "given": microseconds(min(seconds, GIVEN)),
            "lives": microseconds(LIVES),
            "ticket": NO_TICKET,
        }
        deadline = time.monotonic() + wait
        # Who asks often is in nobody's way as a reader.
        if not self._ahead(key, row) and self._take(key, row):
            return True
        return wait > 0 and self._wait(key, row, deadline)

    def release(self, key: str, owner: str) -> None:
        """Hand the lease, if ``owner`` holds it, to who is next."""
        row = {"name": name_bytes(key), "owner": _owner(owner)}

        def work(session: Session) -> None:
            session.run(self._sql(RELEASE), row)
            session.run(self._sql(CLEAR), row)

        self._call(key, work)

    def purge(self) -> None:
        """Remove what has ended."""
        for statement in PURGE:
            self._run(statement, {})

    def _take(self, key: str, row: dict[str, Any]) -> bool:
        def work(session: Session) -> bool:
            taken = session.run(self._sql(TAKE), row) or session.run(self._sql(TAKE_FREE), row)
            return taken == 1

        return self._call(key, work)

    def _wait(self, key: str, row: dict[str, Any], deadline: float) -> bool:
        row = self._draw(key, row)
        taken = False
        try:
            taken = self._its_turn(key, row, deadline)
        finally:
            # Where it fails, who has gone counts as dead soon.
            with suppress(StoreError):
                self._run(LEAVE, row)
                if not taken:  # it may have been given in this moment
                    self._run(RELEASE, row)
                    self._run(CLEAR, row)
        return taken

    def _its_turn(self, key: str, row: dict[str, Any], deadline: float) -> bool:
        came = drawn = time.monotonic()
        most = 0
        while True:
            ahead = self._ahead(key, row)
            if ahead is None and row["lasts"] <= row["given"]:
                return True
            if not ahead and self._take(key, row):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            if now - drawn >= RENEWED:
                drawn = now
                if not self._run(RENEW, row):  # purged meanwhile
                    row |= self._draw(key, row)
            ahead = ahead or 1
            most = max(most, ahead)
            pause = PART * ahead * (now - came) / (most - ahead + 1)
            time.sleep(min(max(pause, PAUSE), LONGEST_PAUSE, max(deadline - now, 0)))

    def _ahead(self, key: str, row: dict[str, Any]) -> int | None:
        """How many come before it: the holder, and lower tickets; None where it is the holder."""
        ((waiting, holder),) = self._call(key, lambda session: session.rows(self._sql(LOOK), row))
        if holder == row["owner"]:
            return None
        return int(waiting) + (holder is not None)

    def _draw(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        ticket = self._call(key, lambda session: session.insert(self._sql(DRAW), row))
        return {**row, "ticket": ticket}

    def _run(self, statement: str, row: dict[str, Any]) -> int:
        return self._call("", lambda session: session.run(self._sql(statement), row))


def _owner(owner: str) -> bytes:
    return owner.encode("utf-8", "surrogatepass")
