"""Record, Change and their one serialised form; TaskState, the view of a task's record.

Stored bytes are untrusted: plain ``json`` (never an object hook), a crc that also covers the
key, sizes capped before I/O. A record of a newer format can be read but not written back; fields
that this release does not know are kept.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

from celery_statekit.asked import CANCEL, PAUSE, Asked
from celery_statekit.chance import chance
from celery_statekit.checkpoint import Checkpoint
from celery_statekit.errors import (
    CorruptRecord,
    InvalidId,
    InvalidInput,
    NewerFormat,
    PayloadTooLarge,
    brief,
)
from celery_statekit.frozen import changed
from celery_statekit.progress import Progress
from celery_statekit.states import LOST, WAITING

#: The format written by this release. A higher number in a stored record is readable, not writable.
FORMAT: Final = 1
#: How many ids of its latest writes a record keeps, to settle a write whose reply was lost.
WRITES_KEPT: Final = 16
#: Longest id, in bytes of UTF-8, that stands in a key in clear; a longer one stands as its SHA-256.
ID_BYTES: Final = 200

UNKNOWN: Final = "UNKNOWN"
#: Begins the reason of a task in whose place another one goes on under the same id.
REPLACED: Final = "replaced by "

#: Of an end that was forgotten, beside what a task's document has.
FORGOTTEN: Final = "forgotten"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes capped before any I/O."""

    #: A record, in bytes of its serialised form.
    record_bytes: int = 256 * 1024
    #: A message or reason, in bytes of UTF-8.
    message_bytes: int = 1024
    #: Changes kept in the history of one key; the oldest go first.
    history_changes: int = 1000

    def __post_init__(self) -> None:
        for limit in fields(self):
            value: object = getattr(self, limit.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInput("no amount", limit.name, value, "a whole number of 0 or more")


#: Matches what percent-encoding leaves as it is; most ids are such.
_IS_ENCODED: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{ID_BYTES}}}").fullmatch


def encode_id(id: str) -> str:
    """``id`` as it stands in a key: injective, ASCII, without separator or control character.

    Percent-encoding (RFC 3986) of everything but unreserved characters. Over 200 bytes it is
    ``~`` and the SHA-256, which no encoded id starts with (``~`` is encoded as ``%7E``).
    """
    if _IS_ENCODED(id):
        return id
    encoded = id.encode("utf-8", "surrogatepass")
    if len(encoded) > ID_BYTES:
        import hashlib  # noqa: PLC0415 - such an id is rare

        return f"~{hashlib.sha256(encoded).hexdigest()}"
    return quote(encoded, safe="").replace("~", "%7E")


def task_key(id: object, *, prefix: str = "statekit") -> str:
    """The key of a task's record.

    Raises:
        InvalidId: ``id`` is not a non-empty text.
    """
    if not isinstance(id, str) or not id:
        raise InvalidId("task id is no text", "task_id", id, "a non-empty str")
    try:
        id.encode()
    except UnicodeEncodeError:
        raise InvalidId("task id has no UTF-8 form", "task_id", id, "no lone surrogate") from None
    return f"{prefix}:task:{encode_id(id)}"


@lru_cache(maxsize=64)
def id_of(key: str) -> str:
    """The id that ends ``key``; "" where its hash stands there, or no kind before it."""
    kind, _, encoded = key.rpartition(":")
    return "" if not kind or encoded.startswith("~") else unquote(encoded)


def client_key(kind: str, id: str, *, prefix: str = "statekit") -> str:
    """The key of a client's record; ``kind`` is the name of its class."""
    return f"{prefix}:client:{encode_id(kind)}:{encode_id(id)}"


def check_id(id: object, path: str = "client_id") -> str:
    """Return ``id`` if it may name a client.

    Raises:
        InvalidId: it is no non-empty ``str`` of at most 200 bytes of UTF-8 without control,
            format (bidirectional override, zero width) and unpaired surrogate characters.
    """
    rule = f"a printable str of 1 to {ID_BYTES} bytes"
    if not isinstance(id, str):
        raise InvalidId("id is no text", path, id, rule)
    if not id or not id.isprintable():
        raise InvalidId("id is empty or not printable", path, id, rule)
    if len(id.encode()) > ID_BYTES:
        raise InvalidId("id is too long", path, id, rule)
    return id


def _token() -> str:
    # Not os.urandom: that is a system call a write.
    return f"{chance.getrandbits(32):08x}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept about one task or one client: a versioned JSON document."""

    key: str
    #: Counts the writes of this incarnation; the first is 1.
    version: int
    #: Drawn when the key is first written: a deleted and recreated key is not the same record.
    incarnation: str
    #: Ids of the latest writes, newest last.
    writes: tuple[str, ...] = ()
    #: JSON object; meaning is given to it above the store.
    document: Mapping[str, Any]
    #: Format it was written in.
    format: int = FORMAT
    #: Fields of the envelope that this release does not know.
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def first(cls, key: str, document: Mapping[str, Any]) -> Record:
        """The first version of a new incarnation."""
        return cls(
            key=key,
            version=1,
            incarnation=_token(),
            writes=(_token(),),
            document=document,
        )

    def next(self, document: Mapping[str, Any], *, kept: int = WRITES_KEPT) -> Record:
        """The version after this one, holding ``document`` and the ids of the ``kept`` latest writes."""
        return changed(
            self,
            version=self.version + 1,
            writes=(*self.writes, _token())[-kept:],
            document=document,
        )

    def follows(self, write: Record) -> bool | None:
        """Whether ``write`` was applied on the way to this version; None if that cannot be told."""
        if self.incarnation != write.incarnation:
            return None
        if write.writes[-1] in self.writes:
            return True
        return None if self.version - write.version >= len(self.writes) else False

    def same(self, other: Record | None) -> bool:
        """Whether both are one version of one incarnation: what a store compares."""
        return (
            other is not None
            and self.version == other.version
            and self.incarnation == other.incarnation
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """The fact that a key moved from one state to another: one entry of its history."""

    #: Counts the changes of the key, from 1, without gaps.
    number: int
    #: The record's version that this change came with.
    version: int
    #: State left; "" for the first change of a key.
    from_state: str
    #: State entered.
    to_state: str
    #: When, in seconds since the epoch, by the writer's clock: to be read, never to be compared.
    at: float
    #: Why, in words.
    reason: str = ""
    #: Name of the task that moved, or that moved the client.
    task: str = ""
    task_id: str = ""
    client_id: str = ""
    #: The run that made the change; 0 outside a run.
    attempt: int = 0
    #: Node name and process id of the run, ``celery@host:4711``.
    worker: str = ""
    #: What else belongs to it: the time of the next retry, the error's type. JSON.
    detail: Mapping[str, Any] = field(default_factory=dict)
    #: Fields that this release does not know.
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """The typed, immutable view of one task's record: one read, one snapshot."""

    id: str
    #: Name of the task, as registered.
    task: str = ""
    state: str = UNKNOWN
    #: The record's version; 0 where there is no record.
    version: int = 0
    #: Number of the latest run; 0 before the first. The fence: a lower one cannot write.
    attempt: int = 0
    #: Node name and process id of the latest run, ``celery@host:4711``.
    worker: str = ""
    client_id: str = ""
    #: Why it stands where it stands, in words.
    reason: str = ""
    #: Progress of the latest run; kept after the end.
    progress: Progress | None = None
    #: Progress of the run before it.
    last_progress: Progress | None = None
    #: What its runs have left for the next one to resume from; kept after the end.
    checkpoint: Checkpoint | None = None
    #: What was asked of it from outside, a cancel or a pause; None: nothing, or it was resumed.
    asked: Asked | None = None
    #: ``{"type": ..., "message": ...}`` of the exception behind RETRY or FAILURE.
    error: Mapping[str, str] | None = None
    #: When the next run is due (RETRY with a countdown, PENDING with an eta); epoch seconds.
    due_at: float | None = None
    queued_at: float | None = None
    #: When the latest run began; epoch seconds.
    started_at: float | None = None
    ended_at: float | None = None
    updated_at: float | None = None
    #: Seconds for which the latest run counts as alive unless its lease is renewed; None: no run
    #: goes on, or of this one that is not known.
    lease: float | None = None
    #: Whether the broker delivers the message again where its run is lost.
    comes_again: bool = False
    #: How many runs before the latest one asked for another one by a retry.
    retries: int = 0
    #: How many runs were lost, one after the other.
    losses: int = 0
    #: What of the message is needed where its run is lost, as JSON text; "": nothing.
    message: str = ""
    #: How many changes the history has seen, kept or not.
    changes: int = 0
    #: Whether the state is an end.
    final: bool = False
    #: Who says so: ``record``, ``celery`` (its result backend knows, no record does) or ``nobody``.
    source: str = "nobody"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forgotten(self) -> bool:
        """Whether it is an end that was forgotten, and is kept for those only who missed it."""
        return self.final and FORGOTTEN in self.extra

    @property
    def running(self) -> bool:
        """Whether a run goes on, as far as the record says: it was claimed, and neither left nor lost."""
        return self.attempt > 0 and not self.final and self.state not in WAITING | {LOST}

    @property
    def cancelled_why(self) -> str:
        """The reason of who cancelled it; "" where nobody has, or none was given."""
        return self.asked.reason if self.asked is not None and self.asked.what == CANCEL else ""

    @property
    def awaits_message(self) -> bool:
        """Whether it was cancelled, and what hangs on it was not told: its message may still come."""
        asked = self.asked
        revoked = self.final and self.state == "REVOKED"
        return revoked and asked is not None and asked.what == CANCEL and not asked.seen

    @property
    def paused(self) -> bool:
        """Whether its run waits until it is resumed; :attr:`asked` says who paused it, and why."""
        asked = self.asked
        return asked is not None and asked.what == PAUSE and asked.seen and self.running

    @property
    def known(self) -> bool:
        """Whether anybody has heard of the id."""
        return self.source != "nobody"

    @classmethod
    def from_record(cls, record: Record) -> TaskState:
        """The view of ``record``.

        Raises:
            CorruptRecord: its document is not a task's.
        """
        document = dict(record.document)
        try:
            known = _take(document, _TASK_FIELDS)
            if "id" not in known and (id := id_of(record.key)):
                known["id"] = id
            return cls(**known, version=record.version, source="record", extra=document)
        except (TypeError, ValueError, OverflowError) as exc:
            raise CorruptRecord(record.key, f"not a task's document: {exc}") from exc

    def to_document(self, key: str = "") -> dict[str, Any]:
        """The document that ``from_record`` reads under ``key``, without what is empty."""
        held = vars(self)
        document: dict[str, Any] = {
            stored: value for name, stored in _TASK_NAMES if (value := held[name])
        }
        for part in ("progress", "last", "checkpoint", "asked"):
            if part in document:
                document[part] = document[part].to_dict()
        if self.id == id_of(key):
            del document["id"]
        return {**self.extra, **document} if self.extra else document


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{brief(value)} is no text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{brief(value)} is no count")
    return value


def _moment(value: object) -> float:
    # JSON's 1e999 is read as infinity.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"{brief(value)} is no time")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{brief(value)} is no flag")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{brief(value)} is no object")
    return value


def _texts(value: object) -> dict[str, str]:
    return {_text(name): _text(text) for name, text in _object(value).items()}


#: How a part of a document stands in the store: under which name, and what checks it when read.
_Fields: TypeAlias = Mapping[str, tuple[str, Callable[[Any], Any]]]

_TASK_FIELDS: Final[_Fields] = {
    "id": ("id", _text),
    "task": ("task", _text),
    "state": ("state", _text),
    "attempt": ("run", _count),
    "worker": ("on", _text),
    "client_id": ("client", _text),
    "reason": ("why", _text),
    "progress": ("progress", Progress.from_dict),
    "last_progress": ("last", Progress.from_dict),
    "checkpoint": ("checkpoint", Checkpoint.from_dict),
    "asked": ("asked", Asked.from_dict),
    "error": ("error", _texts),
    "due_at": ("due", _moment),
    "queued_at": ("queued", _moment),
    "started_at": ("started", _moment),
    "ended_at": ("ended", _moment),
    "updated_at": ("updated", _moment),
    "lease": ("lease", _moment),
    "comes_again": ("again", _flag),
    "retries": ("retries", _count),
    "losses": ("losses", _count),
    "message": ("message", _text),
    "changes": ("changes", _count),
    "final": ("final", _flag),
}
_TASK_NAMES: Final = tuple((name, stored) for name, (stored, _) in _TASK_FIELDS.items())


def _take(document: dict[str, Any], fields: _Fields) -> dict[str, Any]:
    """Take the known ``fields`` out of ``document``, checked; TypeError where one means nothing."""
    return {
        name: check(document.pop(stored))
        for name, (stored, check) in fields.items()
        if stored in document
    }


# --- the one serialised form ---------------------------------------------------------------------


def dump_json(value: object, what: str = "value", path: str = "$") -> str:
    """``value`` as compact JSON text in UTF-8 characters.

    Raises:
        InvalidInput: it holds what JSON has no form for (NaN, bytes, sets, cycles, keys that are
            no text, unpaired surrogates), or is nested too deep.
    """
    try:
        text = _encode(value)
        if not text.isascii():
            text.encode()  # an unpaired surrogate has no UTF-8 form
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidInput(f"{what} is no JSON ({exc})", path, value, "JSON values") from exc
    return text


def load_json(text: str | bytes) -> Any:
    """The value of JSON ``text``, strictly: no NaN, no infinity, no duplicate key.

    Raises:
        ValueError: it is not such JSON, or is nested too deep.
    """
    try:
        return _decoder.decode(text if isinstance(text, str) else text.decode())
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice")
    return document


def _encoder() -> Callable[[object], str]:
    """``json.dumps`` as we want it; its C encoder is made once.

    ``json`` makes a new one for each call (Python 3.14 json/encoder.py:262). Without its search
    for cycles, which end as RecursionError.
    """
    strict = json.JSONEncoder(allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # PyPy
        return strict.encode
    text = json.encoder.encode_basestring
    chunks = make(None, strict.default, text, None, ":", ",", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_encode: Final = _encoder()
_decoder: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)


def cut_text(text: object, limit: int) -> str:
    """``str(text)`` cut to ``limit`` bytes of UTF-8, at a character; surrogates replaced.

    What has no such text (an int of 5,000 digits, a ``__str__`` that raises) is shown as in errors.
    """
    if type(text) is str and text.isascii() and len(text) <= limit:
        return text
    try:
        whole = str(text)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        whole = brief(text)
    encoded = whole.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: max(limit - 3, 0)].decode("utf-8", "ignore") + "…"


@lru_cache(maxsize=64)
def _checksum_of(key: str) -> int:
    return zlib.crc32(f"{key} ".encode())


def _checksum(key: str, body: str) -> str:
    return f"{zlib.crc32(body.encode(), _checksum_of(key)):08x}"


def _seal(key: str, body: str) -> str:
    return f"{_checksum(key, body)}:{body}"


def _unseal(key: str, text: object) -> dict[str, Any]:
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as exc:
            raise CorruptRecord(key, f"not UTF-8: {exc}") from exc
    if not isinstance(text, str) or text[8:9] != ":":
        raise CorruptRecord(key, "it has no checksum")
    body = text[9:]
    try:
        checksum = _checksum(key, body)
    except UnicodeEncodeError as exc:
        raise CorruptRecord(key, f"not UTF-8: {exc}") from exc
    if checksum != text[:8]:
        raise CorruptRecord(key, "its checksum does not match")
    try:
        document = load_json(body)
    except ValueError as exc:
        raise CorruptRecord(key, f"not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise CorruptRecord(key, "not a JSON object")
    return document


def encode_record(record: Record, limits: Limits) -> str:
    """The text that a store keeps for ``record``.

    Raises:
        NewerFormat: it was read in a format newer than this release writes.
        PayloadTooLarge: the text is over ``limits.record_bytes``.
        InvalidInput: the document holds what JSON has no form for.
    """
    if record.format > FORMAT:
        raise NewerFormat(
            record.key, f"its format is {record.format}, this release writes {FORMAT}"
        )
    envelope = {
        **record.extra,
        "format": FORMAT,
        "v": record.version,
        "born": record.incarnation,
        "writes": record.writes,
        "doc": record.document,
    }
    text = _seal(record.key, dump_json(envelope, "record", record.key))
    size = len(text) if text.isascii() else len(text.encode())
    if size > limits.record_bytes:
        raise PayloadTooLarge(
            "record too large", record.key, size, f"at most {limits.record_bytes} bytes"
        )
    return text


def decode_record(key: str, text: object) -> Record:
    """The record that ``encode_record`` wrote under ``key``.

    Raises:
        CorruptRecord: the bytes are not what was written under this key.
    """
    envelope = _unseal(key, text)
    try:
        known = {
            name: check(envelope.pop(stored)) for name, (stored, check) in _RECORD_FIELDS.items()
        }
        return Record(key=key, **known, extra=envelope)
    except (KeyError, TypeError) as exc:
        raise CorruptRecord(key, f"not a record: {exc!r}") from exc


def _each_text(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{brief(value)} is no list")
    return tuple(_text(id) for id in value)


_RECORD_FIELDS: Final[_Fields] = {
    "format": ("format", _count),
    "version": ("v", _count),
    "incarnation": ("born", _text),
    "writes": ("writes", _each_text),
    "document": ("doc", _object),
}
_CHANGE_FIELDS: Final[_Fields] = {
    "number": ("n", _count),
    "version": ("v", _count),
    "from_state": ("from", _text),
    "to_state": ("to", _text),
    "at": ("at", _moment),
    "reason": ("why", _text),
    "task": ("task", _text),
    "task_id": ("id", _text),
    "client_id": ("client", _text),
    "attempt": ("run", _count),
    "worker": ("on", _text),
    "detail": ("detail", _object),
}


#: What is empty where nothing is said of it.
_EMPTY: Final = (
    ("from", "from_state"),
    ("why", "reason"),
    ("task", "task"),
    ("run", "attempt"),
    ("on", "worker"),
    ("detail", "detail"),
)


@lru_cache(maxsize=64)
def _ids(key: str) -> tuple[str, str]:
    """The ids of task and client that a change of ``key`` has where nothing is said of them."""
    id, of_task = id_of(key), key.rpartition(":")[0].endswith(":task")
    return (id, "") if of_task else ("", id)


def encode_change(key: str, change: Change) -> str:
    """The text that a store keeps for one change of ``key``: without what the key says.

    Raises:
        InvalidInput: its detail holds what JSON has no form for.
    """
    held, (task_id, client_id) = vars(change), _ids(key)
    document = {"n": change.number, "to": change.to_state, "at": change.at}
    for stored, name in _EMPTY:
        if value := held[name]:
            document[stored] = value
    if change.version != change.number:
        document["v"] = change.version
    if change.task_id != task_id:
        document["id"] = change.task_id
    if change.client_id != client_id:
        document["client"] = change.client_id
    if change.extra:
        document = {**change.extra, **document}
    return _seal(key, dump_json(document, "change", key))


def decode_change(key: str, text: object) -> Change:
    """The change that ``encode_change`` wrote under ``key``.

    Raises:
        CorruptRecord: the bytes are not what was written under this key.
    """
    document = _unseal(key, text)
    try:
        known = _take(document, _CHANGE_FIELDS)
        task_id, client_id = _ids(key)
        implied = {
            "from_state": "",
            "version": known.get("number"),
            "task_id": task_id,
            "client_id": client_id,
        }
        return Change(**{**implied, **known}, extra=document)
    except (TypeError, OverflowError) as exc:
        raise CorruptRecord(key, f"not a change: {exc}") from exc
