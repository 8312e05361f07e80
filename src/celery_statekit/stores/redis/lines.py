"""What the server keeps, as text: a record and a change are one line each behind a head.

Scripts read the heads only: version, incarnation and labels of a record, the number of a change.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

from celery_statekit.errors import CorruptRecord
from celery_statekit.record import Change, Record, decode_change, decode_record


def version_of(record: Record) -> str:
    """What tells ``record`` from all others of its key."""
    return f"{record.version} {word_of(record.incarnation)}"


@lru_cache(maxsize=1024)
def word_of(label: str) -> str:
    """``label`` without blanks and line ends; a client's as it stands in its key."""
    return quote_from_bytes(label.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")


def label_of(word: bytes) -> str:
    """The label that became ``word``."""
    return unquote_to_bytes(word).decode("utf-8", "surrogatepass")


def record_of(key: str, line: bytes) -> Record:
    """The record of ``key`` that ``line`` holds.

    Raises:
        CorruptRecord: it holds none, or its head is that of another version.
    """
    head, newline, text = line.partition(b"\n")
    record = decode_record(key, text if newline else line)
    if not head.startswith(f"{version_of(record)} ".encode()):
        raise CorruptRecord(key, "its head and its text are of two versions")
    return record


def since_of(key: str, line: bytes) -> float:
    """Since when the record that ``line`` holds has had its state label, epoch seconds.

    Raises:
        CorruptRecord: its head does not say so.
    """
    try:
        return float(line.split(b" ", 3)[2])
    except (IndexError, ValueError):
        raise CorruptRecord(key, "its head is none") from None


def change_of(key: str, line: bytes) -> Change:
    """The change of ``key`` that ``line`` holds.

    Raises:
        CorruptRecord: it holds none, or its head is that of another one.
    """
    number, _, text = line.partition(b" ")
    change = decode_change(key, text)
    if str(change.number).encode() != number:
        raise CorruptRecord(key, "a change of its history and its text have two numbers")
    return change
