"""ClientState: the state of one client, typed, checked, JSON both ways.

A subclass is declared like a dataclass; its fields are converted and validated by msgspec where
they become a document (:meth:`ClientState.to_dict`) and where a document becomes a client
(:meth:`ClientState.from_dict`), so nothing invalid is ever stored or sent.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import msgspec

from celery_statekit.classroom import from_classroom
from celery_statekit.declared import ACTING, Declared, Move, converted, resolve
from celery_statekit.errors import (
    InvalidClientState,
    InvalidId,
    InvalidState,
    PayloadTooLarge,
    brief,
)
from celery_statekit.plain import Copying, seal, shown, unseal
from celery_statekit.record import Limits, check_id, cut_text, dump_json, load_json
from celery_statekit.states import Flow, States

Client = TypeVar("Client", bound="ClientState")

#: Most bytes of JSON that one client may take.
ROOM: Final = Limits().record_bytes


class ClientStates(States):
    """Where a client stands that declares no states of its own."""

    READY = "Ready"
    IN_PROGRESS = "In progress"
    SUCCESS = "Success"
    FAILURE = "Failure"

    __flow__ = {  # noqa: RUF012 - a dunder of an Enum, read once
        "READY": "IN_PROGRESS",
        "IN_PROGRESS": "SUCCESS FAILURE",
        "SUCCESS": "READY",
        "FAILURE": "READY",
    }


@dataclass(frozen=True)
class Action:
    """What a client did, and what came of it."""

    name: str
    state: Literal["IN_PROGRESS", "SUCCESS", "FAILURE"] = "IN_PROGRESS"
    #: JSON value.
    result: Any = None
    #: ``"ValueError: no such book"``, or "".
    error: str = ""


@dataclass
class RunningAction:
    """The action that is being taken."""

    name: str
    #: What came of it: JSON value.
    result: Any = None


class ClientState(Declared, states=ClientStates):
    """The state of one client: a user, an order, a session, a device.

    .. code-block:: python

        from celery_statekit import ClientState, States

        class OrderStates(States):
            BASKET = "In the basket"
            PAID = "Paid"

        class Order(ClientState, states=OrderStates, version=2):
            items: list[str] = []

        order = Order("o-17", items=["book"])
        order.enter(OrderStates.PAID, reason="card")
        assert Order.from_json(order.to_json()) == order

    Options of the class, all inherited but ``kind``:

    * ``states``: an Enum class; its flow says which moves are allowed.
    * ``version``: of its documents, from 1; raise it when what is stored changes its meaning.
    * ``kind``: what stands for the class in keys and errors; its name if not given.

    Fields are annotated class attributes, as in a dataclass, given by keyword; do not decorate the
    class. A mutable default is copied for each client. ``dataclasses.replace`` makes a new client, in
    the first state; ``copy.deepcopy`` copies one. Setting a field checks nothing; ``to_dict``
    and ``to_json`` do. A field may be of plain types, dataclasses, list, dict (with keys of text),
    tuple, set, Optional, unions, Enum, dates and times, Decimal, UUID, bytes (stored as base64)
    and ``Any`` (JSON values). This is checked when the class is defined or, where an annotation
    speaks of a name that is not defined yet, when the first document is read or written.

    Raises:
        InvalidDefinition: by the class statement, if the class cannot work.
        InvalidId: ``client_id`` may not name a client.
    """

    #: Names the client; 1 to 200 bytes, printable.
    client_id: str = field(kw_only=False)
    #: Actions taken, oldest first; stored where the states are those that ``action`` needs.
    actions: list[Action] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_id(self.client_id)

    # --- where it stands ----------------------------------------------------------------------

    @classmethod
    def flow(cls) -> Flow:
        """The table of transitions of this class."""
        return Flow.of(cls.states)

    @property
    def state(self) -> str:
        """Stored name of the state the client stands in."""
        return self._state

    @property
    def available_states(self) -> tuple[str, ...]:
        """Every state there is, in the order declared."""
        return self.flow().states

    @property
    def next_states(self) -> tuple[str, ...]:
        """What the flow lets the client enter from here, in the order declared."""
        return self.flow().allowed(self._state)

    @property
    def moves(self) -> tuple[Move, ...]:
        """The moves made since the client was made or read, oldest first."""
        return self._moves

    def enter(self, state: Enum | str, reason: str = "") -> None:
        """Move the client to ``state``.

        Args:
            state: a member of ``states``, or its stored name.
            reason: why, in words; cut to 1 kB.

        Raises:
            IllegalTransition: the flow, or the transition's guard, does not allow it.
            InvalidState: it is no state of this class.
        """
        flow = self.flow()
        to_state = flow.name_of(state)
        flow.check(self._state, to_state, task=self.kind, id=self.client_id, subject=self)
        move = Move(self._state, to_state, cut_text(reason, Limits().message_bytes))
        self._moves = (*self._moves, move)
        self._state = to_state

    @contextmanager
    def action(self, name: str) -> Iterator[RunningAction]:
        """Take an action: IN_PROGRESS, then SUCCESS or FAILURE as the block ends, then READY.

        The block sets ``.result`` of what it is given. If it raises, the action has failed, its
        error is kept, and the exception goes on.

        Raises:
            IllegalTransition: the client is busy with another action; nothing was changed.
            InvalidState: the states of this class are not those that an action moves between.
            InvalidClientState: ``name`` is no text; or the result is no JSON: the action failed.
        """
        missing = [state for state in ACTING if state not in self.available_states]
        if missing:
            fault = f"{self.kind} takes no actions: it lacks the states for it"
            raise InvalidState(fault, f"{self.kind}.states", missing, ", ".join(ACTING))
        _check_name(name)
        self.enter("IN_PROGRESS", name)
        place = len(self.actions)
        self.actions.append(Action(name))
        running = RunningAction(name)
        try:
            yield running
            result = Copying(self.kind, f"$.actions[{place}].result", ROOM).of(running.result)
        except BaseException as exc:
            self._end_action(place, Action(name, "FAILURE", error=_error_text(exc)))
            raise
        self._end_action(place, Action(name, "SUCCESS", result))

    def _end_action(self, place: int, action: Action) -> None:
        self.actions[place : place + 1] = [action]
        if self._state == "IN_PROGRESS":
            self.enter(action.state, action.error or action.name)
        if self._state in ("SUCCESS", "FAILURE"):
            self.enter("READY", action.name)

    # --- as a document ------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The client's document: plain JSON, shared with nobody, safe for kombu's decoder.

        ``client_id``, ``state`` and ``version``, then the fields, then what the document it was
        read from had beside them. A dict that kombu would take for one of its envelopes has the
        key ``__plain__`` more; ``from_dict`` takes it off.

        Raises:
            InvalidClientState: a field holds what its type does not allow.
            PayloadTooLarge: its JSON takes more than 256 KiB.
        """
        return self._written()[0]

    def to_json(self) -> str:
        """``to_dict`` as JSON text; raises the same."""
        return self._written()[1]

    def __json__(self) -> dict[str, Any]:
        """What kombu sends in its place (kombu 5.7, ``kombu/utils/json.py``): the document."""
        return self.to_dict()

    def _written(self) -> tuple[dict[str, Any], str]:
        cls = type(self)
        resolve(cls)
        copying = Copying(cls.kind, "$", ROOM, typed=True)
        document = copying.of(
            {
                "client_id": _checked_id(self.client_id, cls.kind),
                "state": self._state,
                "version": cls.version,
                **{name: getattr(self, name) for name in cls._stored},
                **self._unknown,
            }
        )
        copying.check_kept(_converted(cls, document, cls.kind))
        if copying.has_envelope:
            document = seal(document)
        return document, _within_room(document, cls.kind)

    @classmethod
    def from_dict(cls: type[Client], document: dict[str, Any]) -> Client:  # noqa: PYI019 - 3.10
        """The client that ``document`` says; ``document`` is neither kept nor changed.

        Reads what ``to_dict`` writes, of this version or, through ``upgrade``, of an older one
        (no ``version``: 1), and the classroom layout (``client_id``, ``available_states``,
        ``curr_state``, ``action_taken``, ``action_result``). Fields it does not know are kept and
        written back; those inside a nested dataclass are not.

        Raises:
            InvalidClientState: it is no such document; the path says where.
            PayloadTooLarge: its JSON takes more than 256 KiB.
        """
        resolve(cls)
        kind = cls.kind
        if not isinstance(document, dict):
            raise InvalidClientState(f"{kind}: no document", "$", shown(document), "a dict")
        copying = Copying(kind, "$", ROOM)
        data: dict[str, Any] = copying.of(document)
        _within_room(data, kind)
        if copying.has_envelope:
            data = unseal(data)
        if "state" not in data and "curr_state" in data:
            data = from_classroom(cls, data)
        client_id = _checked_id(data.get("client_id"), kind)
        version = _checked_version(data.get("version", 1), cls)
        if version < cls.version:
            data = _upgraded(cls, data, version)
            kind = f"{kind} from {kind}.upgrade(data, {version})"
            if data.get("client_id") != client_id:
                got = shown(data.get("client_id"))
                raise InvalidClientState(f"{kind}: another id", "$.client_id", got, client_id)
        state = data.get("state")
        if not isinstance(state, str) or state not in cls.flow().states:
            states = ", ".join(cls.flow().states)
            raise InvalidClientState(f"{kind}: no such state", "$.state", shown(state), states)
        client = _converted(cls, data, kind)
        known = {"client_id", "state", "version", *cls._stored}
        unknown = {name: value for name, value in data.items() if name not in known}
        client._state, client._unknown = state, unknown  # noqa: SLF001 - its own
        if cls._decimals:
            client.to_dict()
        return client

    @classmethod
    def from_json(cls: type[Client], text: str | bytes) -> Client:  # noqa: PYI019 - 3.10
        """The client that JSON ``text`` in UTF-8 says, as :meth:`from_dict`.

        Raises:
            InvalidClientState: it is no JSON (NaN, a key that stands twice, a byte order mark and
                trailing text are none), or no such document.
            PayloadTooLarge: it is longer than 256 KiB.
        """
        kind, rule = cls.kind, "JSON text in UTF-8"
        if not isinstance(text, (str, bytes)):
            raise InvalidClientState(f"{kind}: no text", "$", shown(text), rule)
        try:
            encoded = text.encode() if isinstance(text, str) else text
            _check_room(len(encoded), kind)
            document = load_json(encoded.decode())
        except PayloadTooLarge:
            raise
        except ValueError as exc:
            raise InvalidClientState(f"{kind}: no JSON ({exc})", "$", shown(text), rule) from exc
        return cls.from_dict(document)

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """The document of this class's version that says what ``data``, of an older one, says.

        Called once, with the version stored. Override it when you raise ``version=``; it may
        change ``data``. As it is, a document stays the same and new fields get their defaults.
        """
        del version
        return data

    # --- as a value ---------------------------------------------------------------------------

    def __setattr__(self, name: str, value: object) -> None:
        # What is no field is not stored: a typo would be lost without a word.
        if not (name.startswith("_") or hasattr(type(self), name) or name in self._field_names()):
            raise AttributeError(f"{type(self).kind} has no field {name!r}")
        super().__setattr__(name, value)

    @classmethod
    def _field_names(cls) -> Container[str]:
        return cls.__dataclass_fields__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClientState) or type(self) is not type(other):
            return NotImplemented
        return self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _content(self) -> tuple[Any, ...]:
        fields = [getattr(self, name) for name in self._stored]
        return self.client_id, self._state, fields, dict(self._unknown)

    def __repr__(self) -> str:
        # Without the fields: it stands in logs, in Celery's headers and in Flower.
        return summary(type(self), self.client_id, self._state)


def summary(cls: type[ClientState], client_id: object, state: object) -> str:
    """The one line that stands for a client: ``Order(client_id='o-17', state='PAID')``."""
    return f"{cls.__name__}(client_id={brief(client_id)}, state={brief(state)})"


def _converted(cls: type[Client], data: Mapping[str, Any], kind: str) -> Client:
    """A client with the fields of ``data``; its state is not set."""
    fields = {name: data[name] for name in ("client_id", *cls._stored) if name in data}
    try:
        client: Client = converted(cls, fields)
    except msgspec.ValidationError as exc:
        fault, _, place = str(exc).rpartition(" - at ")
        path = re.sub(r"`key` in |`", "", place) if fault else "$"
        raise InvalidClientState(
            f"{kind}: {(fault or place).replace('`', '')}",
            path,
            shown(_at(data, path)),
            _declaration(cls, path),
        ) from exc
    return client


def _at(data: Any, path: str) -> Any:
    """What stands at msgspec's ``path``, or the last on the way that the path tells."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0]):
        data = data[name or int(index)]
    return data


def _declaration(cls: type[ClientState], path: str) -> str:
    """How the field that ``path`` begins with was declared: ``items: list[str]``."""
    match = re.match(r"\$\.(\w+)", path)
    types = {f.name: f.type for f in dataclasses.fields(cls)}
    if match is None or match[1] not in types:
        return ", ".join(("client_id", *cls._stored))
    declared: Any = types[match[1]]
    if isinstance(declared, type) and not hasattr(declared, "__args__"):
        declared = declared.__name__
    return f"{match[1]}: {declared}"


def _checked_id(client_id: object, kind: str) -> str:
    try:
        return check_id(client_id)
    except InvalidId as exc:
        got = shown(client_id)
        raise InvalidClientState(f"{kind}: {exc.what}", "$.client_id", got, exc.allowed) from exc


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidClientState("no name of an action", "name", shown(name), "a non-empty str")


def _checked_version(version: object, cls: type[ClientState]) -> int:
    if type(version) is not int or not 1 <= version < 2**63:
        fault, allowed = "no version", "an int of 1 or more"
    elif version > cls.version:
        fault, allowed = "written by a newer release", f"versions up to {cls.version}"
    else:
        return version
    raise InvalidClientState(f"{cls.kind}: {fault}", "$.version", shown(version), allowed)


def _upgraded(cls: type[ClientState], data: dict[str, Any], version: int) -> dict[str, Any]:
    call = f"{cls.kind}.upgrade(data, {version})"
    try:
        new: object = cls.upgrade(data, version)
    except Exception as exc:
        rule = "versions that upgrade can read"
        raise InvalidClientState(f"{call} raised {_error_text(exc)}", "$", version, rule) from exc
    if not isinstance(new, dict):
        raise InvalidClientState(f"{call} returned no document", "$", shown(new), "a dict")
    copied: dict[str, Any] = Copying(f"{cls.kind} from {call}", "$", ROOM).of(new)
    return copied


def _within_room(document: Mapping[str, Any], kind: str) -> str:
    """The JSON text of ``document``, if it is not too long."""
    text = dump_json(document, kind)
    _check_room(len(text.encode()), kind)
    return text


def _check_room(size: int, kind: str) -> None:
    if size > ROOM:
        raise PayloadTooLarge(f"{kind} too large", "$", size, f"at most {ROOM} bytes")


def _error_text(exc: BaseException) -> str:
    try:
        text = f"{type(exc).__name__}: {exc}"
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        text = type(exc).__name__
    return cut_text(text, Limits().message_bytes)
