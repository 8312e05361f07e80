"""The tables of a SQL store: their DDL for each dialect, and the moments they keep.

Text is kept as bytes of UTF-8, so that it is compared byte for byte whatever the encoding and
collation of the database. Moments are microseconds since the epoch by the database's clock.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

from celery_statekit.errors import InvalidInput, InvalidSetting

#: Longest key and longest label, in bytes of UTF-8: what an index entry has room for
#: (2704 bytes in PostgreSQL, 3072 in InnoDB), with both in one.
NAME_BYTES: Final = 1500
LABEL_BYTES: Final = 800

MICROSECONDS: Final = 1_000_000
#: Ends a time to live of "almost for ever": 30,000 years, which a BIGINT holds.
_LONGEST: Final = 10**12

#: Of the table of records, so that a later release can tell which of its tables it has before it.
COMMENT: Final = "celery-statekit tables 1"

_POSTGRESQL: Final = """\
CREATE TABLE IF NOT EXISTS {tables}_records (
    name BYTEA PRIMARY KEY,
    kind BYTEA NOT NULL,
    state BYTEA NOT NULL,
    client BYTEA NOT NULL,
    since BIGINT NOT NULL,
    expires BIGINT,
    version BIGINT NOT NULL,
    incarnation BYTEA NOT NULL,
    text BYTEA NOT NULL
);
COMMENT ON TABLE {tables}_records IS '{comment}';
CREATE INDEX IF NOT EXISTS {tables}_records_state ON {tables}_records (kind, state, since, name);
CREATE INDEX IF NOT EXISTS {tables}_records_since ON {tables}_records (kind, since, name);
CREATE INDEX IF NOT EXISTS {tables}_records_client
    ON {tables}_records (kind, client, since, name) WHERE client <> '';
CREATE INDEX IF NOT EXISTS {tables}_records_expires
    ON {tables}_records (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS {tables}_changes (
    name BYTEA NOT NULL,
    incarnation BYTEA NOT NULL,
    number BIGINT NOT NULL,
    text BYTEA NOT NULL,
    PRIMARY KEY (name, incarnation, number)
);
CREATE TABLE IF NOT EXISTS {tables}_alive (
    name BYTEA NOT NULL,
    owner BYTEA NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, owner)
);
CREATE INDEX IF NOT EXISTS {tables}_alive_until ON {tables}_alive (until);
CREATE UNLOGGED TABLE IF NOT EXISTS {tables}_leases (
    name BYTEA PRIMARY KEY,
    owner BYTEA NOT NULL,
    until BIGINT NOT NULL
);
CREATE UNLOGGED TABLE IF NOT EXISTS {tables}_waiters (
    ticket BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name BYTEA NOT NULL,
    owner BYTEA NOT NULL,
    given BIGINT NOT NULL,
    until BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS {tables}_waiters_name ON {tables}_waiters (name, ticket);
"""

_MYSQL: Final = """\
CREATE TABLE IF NOT EXISTS {tables}_records (
    name VARBINARY(1500) NOT NULL PRIMARY KEY,
    kind BINARY(16) NOT NULL,
    state VARBINARY(800) NOT NULL,
    client VARBINARY(800) NOT NULL,
    since BIGINT NOT NULL,
    expires BIGINT,
    version BIGINT NOT NULL,
    incarnation VARBINARY(64) NOT NULL,
    text LONGBLOB NOT NULL,
    KEY {tables}_records_state (kind, state, since, name),
    KEY {tables}_records_since (kind, since, name),
    KEY {tables}_records_client (kind, client, since, name),
    KEY {tables}_records_expires (expires)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC COMMENT = '{comment}';
CREATE TABLE IF NOT EXISTS {tables}_changes (
    name VARBINARY(1500) NOT NULL,
    incarnation VARBINARY(64) NOT NULL,
    number BIGINT NOT NULL,
    text LONGBLOB NOT NULL,
    PRIMARY KEY (name, incarnation, number)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
CREATE TABLE IF NOT EXISTS {tables}_alive (
    name VARBINARY(1500) NOT NULL,
    owner VARBINARY(800) NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (name, owner),
    KEY {tables}_alive_until (until)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
CREATE TABLE IF NOT EXISTS {tables}_leases (
    name VARBINARY(1500) NOT NULL PRIMARY KEY,
    owner BLOB NOT NULL,
    until BIGINT NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
CREATE TABLE IF NOT EXISTS {tables}_waiters (
    ticket BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARBINARY(1500) NOT NULL,
    owner BLOB NOT NULL,
    given BIGINT NOT NULL,
    until BIGINT NOT NULL,
    KEY {tables}_waiters_name (name, ticket)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;
"""

_DDL: Final = {"postgresql": _POSTGRESQL, "mysql": _MYSQL, "mariadb": _MYSQL}


def schema_sql(dialect: str, tables: str = "statekit") -> str:
    """The SQL that makes the tables, for migrations: statements that each end in ``;``.

    Running it again changes nothing. Whoever uses the tables needs SELECT, INSERT, UPDATE and
    DELETE on them, and no more.

    Args:
        dialect: ``postgresql``, ``mysql`` or ``mariadb``.
        tables: what their names begin with.

    Raises:
        InvalidSetting: there is no such dialect, or ``tables`` is no such name.
    """
    if dialect not in _DDL:
        raise InvalidSetting("no SQL dialect of ours", "dialect", dialect, ", ".join(_DDL))
    return _DDL[dialect].format(tables=check_tables(tables), comment=COMMENT)


def check_tables(tables: object) -> str:
    """``tables`` if the names of tables may begin with it.

    Raises:
        InvalidSetting: they may not.
    """
    # It becomes part of statements: nothing that would need quoting.
    if not isinstance(tables, str) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", tables):
        raise InvalidSetting(
            "no beginning of a table's name", "tables", tables, "1 to 40 of a-z, 0-9 and _"
        )
    return tables


def name_bytes(key: str) -> bytes:
    """``key`` as it is stored.

    Raises:
        InvalidInput: it is longer than an index has room for, or has no UTF-8 form.
    """
    return _bytes(key, "key", NAME_BYTES)


def label_bytes(label: str, path: str) -> bytes:
    """``label`` as it is stored.

    Raises:
        InvalidInput: it is longer than an index has room for, or has no UTF-8 form.
    """
    return _bytes(label, path, LABEL_BYTES)


def owner_bytes(owner: str) -> bytes:
    """``owner`` as it is stored beside a key: hashed where an index has no room for it."""
    encoded = owner.encode("utf-8", "surrogatepass")
    if len(encoded) <= LABEL_BYTES:
        return encoded
    # No text begins with this byte.
    return b"\xff" + sha256(encoded).digest()


def _bytes(text: str, path: str, most: int) -> bytes:
    rule = f"at most {most} bytes of UTF-8"
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("it has no UTF-8 form", path, text, rule) from None
    if len(encoded) > most:
        raise InvalidInput("it is longer than an index has room for", path, text, rule)
    return encoded


def kind_bytes(kind: str) -> bytes:
    """``kind`` as it is indexed: 16 bytes of its SHA-256, for it may be as long as a key."""
    return sha256(kind.encode("utf-8", "surrogatepass")).digest()[:16]


def microseconds(seconds: float) -> int:
    """``seconds`` in the unit of the tables, cut to what fits a column."""
    return round(max(min(seconds, _LONGEST), -_LONGEST) * MICROSECONDS)
