"""States, the table of transitions between them, its checks and its pictures; pure.

A flow is one table: for each state, the states that may be entered from it. Final states, the
check of every move, the Mermaid text and the Markdown table derive from it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Final

from celery_statekit.errors import IllegalTransition, InvalidDefinition, InvalidState, brief

#: Longest stored name, in characters: Celery's database backend keeps a state in a
#: ``String(50)`` (celery 5.7 backends/database/models.py).
NAME_LENGTH: Final = 50

#: Stands in an open flow for every name that is not Celery's own.
ANY: Final = "*"

#: Asked with the subject of a move, a ``TaskState`` or a ``ClientState``. True or None: it may be
#: made. False or a sentence: it may not, and the sentence says why.
Guard = Callable[[Any], "bool | str | None"]

_AGAIN: Final = ("STARTED", "FAILURE", "REVOKED")

#: Of a task whose run is gone, or seems to be.
LOST: Final = "LOST"

#: The lifecycle around a task's states: the label, and what may follow.
_LIFECYCLE: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    # Published, and no run has begun. A run whose STARTED could not be written ends it directly.
    "PENDING": ("Queued", ("STARTED", "SUCCESS", "FAILURE", "REVOKED")),
    # A run has begun. Whatever state it is in, it may end, rest, be lost, or begin anew when its
    # message is delivered again.
    "STARTED": (
        "Started",
        ("STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED", "LOST"),
    ),
    # The run asked for another one, whose message waits for its time.
    "RETRY": ("Waiting for the next attempt", _AGAIN),
    "SUCCESS": ("Succeeded", ()),
    "FAILURE": ("Failed", ()),
    "REVOKED": ("Revoked", ()),
    # Resting places, not ends: ``Task.replace`` starts the same id again ...
    "IGNORED": ("Ignored", _AGAIN),
    # ... and so does ``Reject(requeue=True)``.
    "REJECTED": ("Rejected", _AGAIN),
    # The lease ended and nobody said how. The task may be sent again, its message may come again,
    # and a run that only seemed lost ends as it says.
    LOST: (
        "Lost",
        ("PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "IGNORED", "REJECTED"),
    ),
}

#: The names of a task's lifecycle: Celery's, and LOST.
LIFECYCLE: Final = tuple(_LIFECYCLE)
#: Those that nothing follows.
ENDS: Final = frozenset(name for name, (_, nexts) in _LIFECYCLE.items() if not nexts)
#: Names that no state declared for a task may have, in any case of letters.
RESERVED: Final = frozenset({*LIFECYCLE, "RECEIVED", "PROGRESS", "UNKNOWN"})


#: Where a task stands of which no run goes on, but may begin.
WAITING: Final = frozenset({"", "UNKNOWN", "PENDING", "RETRY", "IGNORED", "REJECTED"})


class States(enum.Enum):
    """The states of a task or client: a member's name is stored, its value is the label shown.

    Moves go forward in the order written, and may skip states. Another flow is declared in the
    body, in names; a state that is no key has no way out:

    .. code-block:: python

        from celery_statekit import States

        class Document(States):
            DRAFT = "Draft"
            WAITING = "Waiting for review"
            DONE = "Done"

            __flow__ = {"DRAFT": "WAITING", "WAITING": "DRAFT DONE"}
            __guards__ = {("WAITING", "DONE"): lambda document: bool(document.reviewers)}

    A value of ``__flow__`` is text with blanks between the names, or an iterable of names and
    members. A guard answers True or None where the move may be made, False or a sentence that
    says why where it may not.
    """

    __flow__: ClassVar[Mapping[Any, str | enum.Enum | Iterable[str | enum.Enum]]]
    __guards__: ClassVar[Mapping[tuple[Any, Any], Guard]]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Flow:
    """The one table of transitions; made by :meth:`of` and :func:`task_flow`."""

    #: Name of the class that declares the states.
    name: str
    #: For each state, in the order declared, the states that may be entered from it.
    table: Mapping[str, tuple[str, ...]]
    guards: Mapping[tuple[str, str], Guard]
    #: The label of each state; may be a text that is translated when it is read.
    captions: Mapping[str, object]
    #: The states that a run may enter first.
    begins: tuple[str, ...]
    #: The class that declares the states; None: the set is open.
    declared_by: type[enum.Enum] | None
    #: In the flow of a task: STARTED and the states that user code enters.
    running: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Flow {self.name}: {', '.join(self.states)}>"

    @classmethod
    def of(cls, states: type[enum.Enum]) -> Flow:
        """The flow that ``states`` declares; checked and built once per class.

        Stored is a member's name; where the class is no :class:`States` and all its values are
        text (``StrEnum``, Django's ``TextChoices``), its value. The label is the value of a
        States' member, a member's own ``label`` (``TextChoices``), else its name.

        Raises:
            InvalidDefinition: it cannot work; says what is wrong, and where.
        """
        given: object = states
        if not (isinstance(given, type) and issubclass(given, enum.Enum)):
            raise InvalidDefinition("no class of states", "states", states, "a subclass of Enum")
        return _declared(states)

    @cached_property
    def states(self) -> tuple[str, ...]:
        """Stored names in the order declared; in an open flow ``*`` stands for any other name."""
        return tuple(self.table)

    @cached_property
    def initial(self) -> str:
        """Where a subject stands first: the first state."""
        return self.states[0]

    @cached_property
    def finals(self) -> frozenset[str]:
        """The states without a way out."""
        return frozenset(state for state, nexts in self.table.items() if not nexts)

    @cached_property
    def open(self) -> bool:
        """Whether a running task may enter any name that is not Celery's own."""
        return self.declared_by is None

    @property
    def labels(self) -> Mapping[str, str]:
        """What is shown for each stored name, translated now where it can be."""
        return {state: str(caption) for state, caption in self.captions.items()}

    def allowed(self, from_state: str) -> tuple[str, ...]:
        """The states that may be entered from ``from_state``; none where it is unknown."""
        return self.table.get(self._row(from_state), ())

    def enterable(self, from_state: str) -> tuple[str, ...]:
        """Those of :meth:`allowed` that user code may enter: not a task's lifecycle."""
        return tuple(state for state in self.allowed(from_state) if state in self._by_hand)

    def check(
        self,
        from_state: str,
        to_state: str,
        *,
        task: str,
        id: str,
        subject: object = None,
        by_hand: bool = False,
    ) -> None:
        """Return if the move may be made; the guard is asked last.

        Args:
            from_state: the stored state; may be one that only another release knows.
            to_state: a stored name.
            task: name of the task, or of the client's class, for the error.
            id: id of the task or client, for the error.
            subject: what the guard is asked with.
            by_hand: user code wants the move; it may enter no state of a task's lifecycle.

        Raises:
            IllegalTransition: the table refuses it (also to enter the same state again, unless
                that is declared), or the guard does. What a guard raises passes through: a
                database that is down is no answer, and ``autoretry_for`` may match it.
        """
        move = self._row(from_state), self._row(to_state)
        if move not in self._moves or (by_hand and move[1] not in self._by_hand):
            why = self._why(from_state, to_state, by_hand=by_hand)
        else:
            why = _refusal(self._moves[move], subject)
            if not why:
                return
        allowed = self.enterable(from_state) if by_hand else self.allowed(from_state)
        raise IllegalTransition(task, id, from_state, to_state, allowed, why)

    def name_of(self, state: enum.Enum | str) -> str:
        """The stored name of a member, or of a stored name.

        An open flow takes members of any Enum, and any name of at most 50 printable characters
        that is not Celery's own.

        Raises:
            InvalidState: it is no state of this flow. A member of another Enum is none, even if
                the names are equal.
        """
        name: object = state
        if isinstance(state, enum.Enum):
            own = self.open or type(state) is self.declared_by
            name = _stored_names(type(state)).get(state.name) if own else None
        if isinstance(name, str) and self._row(name) in self.table:
            return name
        unlike = ", ".join(sorted(RESERVED - {*LIFECYCLE}))
        allowed = (
            f"{_NAME_RULE}, unlike {unlike}"
            if self.open
            else ", ".join(known for known in self.states if known in self._by_hand)
        )
        raise InvalidState(f"no state of {self.name}", "state", state, allowed)

    def mermaid(self) -> str:
        """The table as Mermaid's ``stateDiagram-v2``.

        Of a task, the running states stand in one frame: an arrow that leaves the frame leaves
        each of them, one that enters it enters STARTED. States of the lifecycle that share all
        their arrows share a box. Where moves go forward and may skip states, only single steps
        are drawn, and the picture says that the others may be made too.
        """
        from celery_statekit import pictures  # noqa: PLC0415 - few processes draw

        return pictures.mermaid(self)

    def markdown(self) -> str:
        """The table in Markdown: state, label, and what may be entered from it."""
        from celery_statekit import pictures  # noqa: PLC0415 - few processes draw

        return pictures.markdown(self)

    @cached_property
    def _moves(self) -> Mapping[tuple[str, str], Guard | None]:
        moves = [(state, to) for state, nexts in self.table.items() for to in nexts]
        return {move: self.guards.get(move) for move in moves}

    @cached_property
    def _by_hand(self) -> frozenset[str]:
        return frozenset(self.running[1:] or self.states)

    def _row(self, state: str) -> str:
        """Where ``state`` stands in the table: under its name, or in an open flow under ``*``."""
        if self.open and state not in self.table and state not in RESERVED:
            return state if _name_fault(state) else ANY
        return state

    def _why(self, from_state: str, to_state: str, *, by_hand: bool) -> str:
        if self._row(from_state) not in self.table:
            # A record may outlive the release that knew its state.
            return f"{brief(from_state)} is no state of {self.name}; another release may know it"
        if self._row(to_state) not in self.table:
            return f"{brief(to_state)} is no state of {self.name}"
        if by_hand and self._row(to_state) not in self._by_hand:
            return f"{to_state} belongs to the lifecycle and is not entered by hand"
        if by_hand and self.running and self._row(from_state) not in self.running:
            return f"no run stands in {from_state}"
        return ""


@cache
def task_flow(declared: Flow | None) -> Flow:
    """The whole life of a task around the states declared for it; None: an open set of states.

    A run begins in STARTED. From there it may enter any declared state where they go forward, and
    the first one where ``__flow__`` says how they go. In an open set it may always enter any
    name, but Celery's own.

    Raises:
        InvalidDefinition: a declared state has a name of the lifecycle, in any case of letters.
    """
    inner = declared or _ANYTHING
    for name in declared.states if declared else ():
        if name.upper() in RESERVED:
            rule = f"none of {', '.join(sorted(RESERVED))} in any case of letters"
            raise InvalidDefinition("reserved name of a state", inner.name, name, rule)
    leave = _LIFECYCLE["STARTED"][1]
    table: dict[str, tuple[str, ...]] = {}
    captions: dict[str, object] = {}
    for state, (label, nexts) in _LIFECYCLE.items():
        table[state], captions[state] = nexts, label
        if state == "STARTED":
            table[state] = inner.begins + leave
            table |= {step: steps + leave for step, steps in inner.table.items()}
            captions |= inner.captions
    return Flow(
        name=inner.name,
        table=MappingProxyType(table),
        guards=inner.guards,
        captions=captions,
        begins=inner.begins,
        declared_by=inner.declared_by,
        running=("STARTED", *inner.states),
    )


_ANYTHING: Final = Flow(
    name="an open set",
    table={ANY: (ANY,)},
    guards={},
    captions={ANY: "Any other name"},
    begins=(ANY,),
    declared_by=None,
)


# --- the definition ------------------------------------------------------------------------------

_NAME_RULE: Final = f"1 to {NAME_LENGTH} printable characters without a blank at either end"


def _name_fault(name: str) -> str:
    """What forbids to store ``name`` as a state, or ""."""
    if not name:
        return "empty name of a state"
    if len(name) > NAME_LENGTH:
        return "too long name of a state"
    if not name.isprintable():
        return "name of a state is not printable"
    return "" if name == name.strip() else "name of a state with a blank at an end"


@cache
def _stored_names(states: type[enum.Enum]) -> Mapping[str, str]:
    """What is stored for each member, by the member's name."""
    by_value = all(isinstance(member.value, str) for member in states)
    if by_value and not issubclass(states, States):
        return {member.name: member.value for member in states}
    return {member.name: member.name for member in states}


def _caption(member: enum.Enum) -> object:
    if isinstance(member, States):
        return member.value
    # A member may be called ``label`` itself.
    label = None if "label" in type(member).__members__ else getattr(member, "label", None)
    return member.name if label is None or callable(label) else label


@cache
def _declared(states: type[enum.Enum]) -> Flow:
    definition = _Definition(states)
    definition.check_members()
    definition.check_labels()
    table = definition.table()
    definition.check_ways(table)
    return Flow(
        name=states.__name__,
        table=MappingProxyType(table),
        guards=MappingProxyType(definition.guards(table)),
        captions=definition.captions,
        begins=(definition.names[0],) if definition.flow is not None else definition.names,
        declared_by=states,
    )


class _Definition:
    """A class of states while it is checked."""

    def __init__(self, states: type[enum.Enum]) -> None:
        self.states = states
        self.flow = getattr(states, "__flow__", None)
        self.names = tuple(_stored_names(states).values())
        self.captions = dict(zip(self.names, map(_caption, states), strict=True))

    def fault(self, what: str, got: object, allowed: str, where: str = "") -> InvalidDefinition:
        return InvalidDefinition(what, f"{self.states.__name__}{where}", got, allowed)

    def check_members(self) -> None:
        if not self.names:
            raise self.fault("no states", [], "at least one member")
        texts = {isinstance(member.value, str) for member in self.states}
        for name, member in self.states.__members__.items():
            where, value = f".{name}", member.value
            if name != member.name:
                # An Enum makes the second of two equal values another name of the first.
                what = f"duplicate {'label' if issubclass(self.states, States) else 'value'}"
                raise self.fault(what, value, f"one unlike that of {member.name}", where)
            if issubclass(self.states, States):
                if not isinstance(value, str) or not value.strip():
                    raise self.fault("label is no text", value, "a text", where)
            elif len(texts) > 1 and not isinstance(value, str):
                rule = "only text, which is stored, or no text: then the names are"
                raise self.fault("no text among values that are", value, rule, where)
            stored = _stored_names(self.states)[name]
            if fault := _name_fault(stored):
                raise self.fault(fault, stored, _NAME_RULE, where)

    def check_labels(self) -> None:
        seen: dict[str, str] = {}
        for name, label in self.captions.items():
            # A text to be translated later cannot be read yet.
            if isinstance(label, str) and seen.setdefault(label, name) != name:
                raise self.fault("duplicate label", label, f"one unlike that of {seen[label]}")

    def table(self) -> dict[str, tuple[str, ...]]:
        if self.flow is None:
            return {name: self.names[at + 1 :] for at, name in enumerate(self.names)}
        if not isinstance(self.flow, Mapping):
            rule = "a mapping from states to those that may follow"
            raise self.fault("no flow", self.flow, rule, ".__flow__")
        given: dict[str, tuple[str, ...]] = {}
        for key, value in self.flow.items():
            name = self.name(key, ".__flow__")
            if name in given:
                raise self.fault("state given twice", key, "each state once", ".__flow__")
            given[name] = self.targets(value, f".__flow__[{name!r}]")
        return {name: given.get(name, ()) for name in self.names}

    def targets(self, value: object, where: str) -> tuple[str, ...]:
        if isinstance(value, enum.Enum):
            value = (value,)
        elif isinstance(value, str):
            value = value.split()
        if not isinstance(value, Iterable):
            raise self.fault("no states to follow", value, "text or an iterable", where)
        names = [self.name(target, where) for target in value]
        if isinstance(value, (set, frozenset)):
            names.sort(key=self.names.index)
        for at, name in enumerate(names):
            if name in names[:at]:
                raise self.fault("duplicate target", name, "each state once", where)
        return tuple(names)

    def name(self, state: object, where: str) -> str:
        name = state
        if isinstance(state, enum.Enum):
            own = type(state) is self.states
            name = _stored_names(self.states).get(state.name) if own else None
        if not isinstance(name, str) or name not in self.names:
            raise self.fault("unknown state", state, ", ".join(self.names), where)
        return name

    def check_ways(self, table: Mapping[str, tuple[str, ...]]) -> None:
        reached = _reach(table, self.names[0])
        finals = {name for name, nexts in table.items() if not nexts}
        for name in self.names:
            if name not in reached:
                rule = f"states with a way from {self.names[0]}, the first"
                raise self.fault("unreachable state", name, rule, ".__flow__")
            if finals and not finals & _reach(table, name):
                ends = ", ".join(end for end in self.names if end in finals)
                raise self.fault("trap", name, f"states with a way to {ends}", ".__flow__")

    def guards(self, table: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, str], Guard]:
        declared = getattr(self.states, "__guards__", {})
        where = ".__guards__"
        if not isinstance(declared, Mapping):
            raise self.fault("no guards", declared, "{(from, to): callable}", where)
        guards: dict[tuple[str, str], Guard] = {}
        for pair, guard in declared.items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise self.fault("no transition", pair, "a pair (from, to)", where)
            move = self.name(pair[0], where), self.name(pair[1], where)
            if move[1] not in table[move[0]]:
                rule = ", ".join(table[move[0]]) or "nothing"
                raise self.fault("guard of an undeclared transition", pair, rule, where)
            if move in guards:
                raise self.fault("transition guarded twice", pair, "one guard", where)
            if not callable(guard) or inspect.iscoroutinefunction(guard):
                raise self.fault("no guard", guard, "a callable that is not async", where)
            guards[move] = guard
        return guards


def _reach(table: Mapping[str, tuple[str, ...]], start: str) -> set[str]:
    reached, ahead = {start}, [start]
    while ahead:
        new = set(table[ahead.pop()]) - reached
        reached |= new
        ahead += new
    return reached


def _refusal(guard: Guard | None, subject: object) -> str:
    """Why the guard refuses, or "" where it does not."""
    answer: object = None if guard is None else guard(subject)
    if answer is None or answer is True:
        return ""
    if answer is False:
        return "its guard refuses"
    if isinstance(answer, str) and answer.strip():
        return answer
    return f"its guard answered {brief(answer)}, no bool, None or sentence"
