"""The statements about records that PostgreSQL and MySQL share.

Words in braces are the dialect's own. ``now`` is the database's clock in microseconds at the
beginning of the statement, ``moment`` when it is asked; ``by_...`` means along this index.
"""

from __future__ import annotations

from typing import Any, Final

from celery_statekit.stores.sql.tables import MICROSECONDS, kind_bytes, microseconds

#: What a BIGINT holds.
LARGEST: Final = 2**63 - 1

READ: Final = """
    SELECT version, incarnation, text FROM {tables}_records
    WHERE name = %(name)s AND (expires IS NULL OR expires > {now})"""
HISTORY: Final = """
    SELECT changes.number, changes.text
    FROM {tables}_records AS records
    JOIN {tables}_changes AS changes
        ON changes.name = records.name AND changes.incarnation = records.incarnation
    WHERE records.name = %(name)s AND (records.expires IS NULL OR records.expires > {now})
        AND changes.number > %(after)s
    ORDER BY changes.number LIMIT %(limit)s"""
NEXT: Final = """
    UPDATE {tables}_records
    SET since = CASE WHEN state = %(state)s THEN since ELSE {moment} END,
        state = %(state)s, client = %(client)s, expires = {moment} + %(ttl)s,
        version = %(version)s, incarnation = %(incarnation)s, text = %(text)s
    WHERE name = %(name)s AND version = %(expected_version)s
        AND incarnation = %(expected_incarnation)s AND (expires IS NULL OR expires > {moment})"""
DELETE: Final = """
    DELETE FROM {tables}_records
    WHERE name = %(name)s AND (expires IS NULL OR expires > {now})"""
FORGET: Final = "DELETE FROM {tables}_changes WHERE name = %(name)s"
# What another transaction writes anew at this moment is locked, and left alone.
EXPIRED: Final = """
    SELECT name FROM {tables}_records WHERE expires <= {now}
    ORDER BY expires LIMIT %(limit)s FOR UPDATE SKIP LOCKED"""
PURGE: Final = "DELETE FROM {tables}_records WHERE name = %(name)s"
FIND: Final = """
    SELECT name, since, text FROM {tables}_records {by_index}
    WHERE kind = %(kind)s AND (expires IS NULL OR expires > {now})"""
COUNT: Final = """
    SELECT state, count(*) FROM {tables}_records {by_state}
    WHERE kind = %(kind)s AND (expires IS NULL OR expires > {now}) GROUP BY state"""


def find_statement(
    kind: str,
    *,
    state: str | None,
    client: str | None,
    older: float,
    newest: bool,
    after: tuple[float, str] | None,
    limit: int,
) -> tuple[str, dict[str, Any]]:
    """The SELECT of a page, and its parameters."""
    row: dict[str, Any] = {"kind": kind_bytes(kind), "limit": row_count(limit)}
    index = "client" if client is not None else "since" if state is None else "state"
    statement = FIND.replace("by_index", f"by_{index}")
    for column, label in (("state", state), ("client", client)):
        if label is not None:
            # No record has a label that is too long; it is compared whole, though.
            row[column] = label.encode("utf-8", "surrogatepass")
            statement += f" AND {column} = %({column})s"
    if client:
        # Says no more, but lets PostgreSQL use the index, which has no others.
        statement += " AND client <> ''"
    if older > 0:
        row["older"] = microseconds(older)
        statement += " AND since <= {now} - %(older)s"
    sign, order = ("<", "DESC") if newest else (">", "ASC")
    if after is not None:
        row["since"], row["name"] = round(after[0] * MICROSECONDS), after[1].encode()
        # Not (since, name) > (...), for which MySQL uses no index.
        statement += (
            f" AND since {sign}= %(since)s AND (since {sign} %(since)s OR name {sign} %(name)s)"
        )
    statement += f" ORDER BY since {order}, name {order} LIMIT %(limit)s"
    return statement, row


def row_count(limit: int) -> int:
    """``limit`` as LIMIT takes it."""
    return min(max(limit, 0), LARGEST)
