"""Flows: what they allow, how a definition is refused, and whether their pictures are true."""

from __future__ import annotations

import enum
import html
import itertools
import pickle
import re
import types
from collections.abc import Callable
from typing import Any, Final

import pytest
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_statekit.errors import (
    IllegalTransition,
    InvalidDefinition,
    InvalidState,
    StoreUnavailable,
)
from celery_statekit.states import ANY, ENDS, LIFECYCLE, RESERVED, Flow, States, task_flow


def declare(
    members: dict[str, Any],
    flow: Any = None,
    guards: Any = None,
    bases: tuple[type, ...] = (States,),
) -> type[enum.Enum]:
    """A class named Drawn, as if its body had been written out."""

    def body(namespace: dict[str, Any]) -> None:
        for name, value in members.items():
            namespace[name] = value
        if flow is not None:
            namespace["__flow__"] = flow
        if guards is not None:
            namespace["__guards__"] = guards

    return types.new_class("Drawn", bases, exec_body=body)


def letters(names: str) -> dict[str, str]:
    """One member per letter, with a label of its own."""
    return {name: f"The {name}" for name in names}


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"
    INDEXING = "Rebuilding the index"


class Document(States):
    DRAFT = "Draft"
    WAITING = "Waiting for review"
    DONE = "Done"
    BINNED = "In the bin"

    __flow__ = {"DRAFT": "WAITING DRAFT BINNED", "WAITING": ["DONE", "DRAFT"], "BINNED": {"DRAFT"}}


class Client(States):
    READY = "Ready"
    IN_PROGRESS = "In progress"
    SUCCESS = "Succeeded"
    FAILURE = "Failed"

    __flow__ = {
        "READY": "IN_PROGRESS",
        "IN_PROGRESS": "SUCCESS FAILURE",
        "SUCCESS": "READY",
        "FAILURE": "READY",
    }


class Phase(str, enum.Enum):
    FETCH = "fetch rows"
    PARSE = "parse"
    SAVE = "save"


class Once(States):
    ONLY = "The only one"


LEAVE: Final = "STARTED RETRY SUCCESS FAILURE REVOKED IGNORED REJECTED LOST"
AGAIN: Final = "STARTED FAILURE REVOKED"
AROUND: Final = {
    "PENDING": "STARTED SUCCESS FAILURE REVOKED",
    "RETRY": AGAIN,
    "SUCCESS": "",
    "FAILURE": "",
    "REVOKED": "",
    "IGNORED": AGAIN,
    "REJECTED": AGAIN,
    "LOST": "PENDING STARTED RETRY SUCCESS FAILURE REVOKED IGNORED REJECTED",
}

#: Each flow, and its table written by hand.
FLOWS: Final[dict[str, tuple[Flow, dict[str, str | list[str]]]]] = {
    "forward": (
        Flow.of(Import),
        {"READING": "IMPORTING INDEXING", "IMPORTING": "INDEXING", "INDEXING": ""},
    ),
    "cycles": (
        Flow.of(Document),
        {"DRAFT": "WAITING DRAFT BINNED", "WAITING": "DONE DRAFT", "DONE": "", "BINNED": "DRAFT"},
    ),
    "client": (
        Flow.of(Client),
        {
            "READY": "IN_PROGRESS",
            "IN_PROGRESS": "SUCCESS FAILURE",
            "SUCCESS": "READY",
            "FAILURE": "READY",
        },
    ),
    "foreign": (Flow.of(Phase), {"fetch rows": "parse save", "parse": "save", "save": ""}),
    "single": (Flow.of(Once), {"ONLY": ""}),
    "task, forward": (
        task_flow(Flow.of(Import)),
        AROUND
        | {
            "STARTED": f"READING IMPORTING INDEXING {LEAVE}",
            "READING": f"IMPORTING INDEXING {LEAVE}",
            "IMPORTING": f"INDEXING {LEAVE}",
            "INDEXING": LEAVE,
        },
    ),
    "task, cycles": (
        task_flow(Flow.of(Document)),
        AROUND
        | {
            "STARTED": f"DRAFT {LEAVE}",
            "DRAFT": f"WAITING DRAFT BINNED {LEAVE}",
            "WAITING": f"DONE DRAFT {LEAVE}",
            "DONE": LEAVE,
            "BINNED": f"DRAFT {LEAVE}",
        },
    ),
    "task, foreign": (
        task_flow(Flow.of(Phase)),
        AROUND
        | {
            "STARTED": ["fetch rows", "parse", "save", *LEAVE.split()],
            "fetch rows": f"parse save {LEAVE}",
            "parse": f"save {LEAVE}",
            "save": LEAVE,
        },
    ),
    "task, single": (
        task_flow(Flow.of(Once)),
        AROUND | {"STARTED": f"ONLY {LEAVE}", "ONLY": LEAVE},
    ),
    "task, open": (
        task_flow(None),
        AROUND | {"STARTED": f"* {LEAVE}", "*": f"* {LEAVE}"},
    ),
}

each_flow = pytest.mark.parametrize(("flow", "expected"), FLOWS.values(), ids=FLOWS.keys())
each_task_flow = pytest.mark.parametrize(
    ("flow", "expected"),
    [FLOWS[name] for name in FLOWS if name.startswith("task")],
    ids=[name for name in FLOWS if name.startswith("task")],
)


def table(expected: dict[str, str | list[str]]) -> dict[str, tuple[str, ...]]:
    return {
        state: tuple(nexts.split() if isinstance(nexts, str) else nexts)
        for state, nexts in expected.items()
    }


def passes(flow: Flow, from_state: str, to_state: str, **options: Any) -> bool:
    try:
        flow.check(from_state, to_state, task="shop.import", id="4711", **options)
    except IllegalTransition:
        return False
    return True


def refusal(flow: Flow, from_state: str, to_state: str, **options: Any) -> IllegalTransition:
    with pytest.raises(IllegalTransition) as caught:
        flow.check(from_state, to_state, task="shop.import", id="4711", **options)
    return caught.value


# --- what a flow allows --------------------------------------------------------------------------


@each_flow
def test_every_pair_of_states_is_judged_as_the_table_says(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """Of all pairs of names, known and unknown, exactly those of the table pass."""
    names = [*table(expected), "UNKNOWN", "", " "]

    passed = {pair for pair in itertools.product(names, names) if passes(flow, *pair)}

    assert passed == {(a, b) for a, nexts in table(expected).items() for b in nexts}


@each_flow
def test_allowed_are_the_next_states_in_the_order_declared(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """``allowed`` answers each row of the table, in its order."""
    assert {state: flow.allowed(state) for state in flow.states} == table(expected)


@each_flow
def test_final_states_are_those_without_a_way_out(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """``finals`` follows from the table."""
    assert flow.finals == {state for state, nexts in expected.items() if not nexts}


@each_task_flow
def test_only_declared_states_are_entered_by_hand(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """By hand exactly the moves of the table pass that lead to no state of the lifecycle."""
    names = list(table(expected))

    passed = {p for p in itertools.product(names, names) if passes(flow, *p, by_hand=True)}

    moves = {(a, b) for a, nexts in table(expected).items() for b in nexts}
    assert passed == {(a, b) for a, b in moves if b not in LIFECYCLE}
    for state in names:
        assert flow.enterable(state) == tuple(
            b for b in flow.allowed(state) if (state, b) in passed
        )


def test_a_client_enters_all_its_states_by_hand() -> None:
    """Outside of tasks there is no lifecycle: enterable is what is allowed."""
    flow = Flow.of(Client)

    assert flow.enterable("IN_PROGRESS") == ("SUCCESS", "FAILURE")
    assert passes(flow, "IN_PROGRESS", "SUCCESS", by_hand=True)


def test_the_first_state_is_the_initial_one() -> None:
    """A subject stands first in the state written first; a task in PENDING."""
    assert Flow.of(Document).initial == "DRAFT"
    assert task_flow(Flow.of(Document)).initial == "PENDING"


def test_only_the_ends_end_a_task() -> None:
    """Whatever is declared, a task ends in SUCCESS, FAILURE or REVOKED and nowhere else."""
    assert {"SUCCESS", "FAILURE", "REVOKED"} == ENDS
    assert task_flow(Flow.of(Import)).finals == task_flow(None).finals == ENDS


def test_a_flow_is_built_once() -> None:
    """The same class gives the same flow, and the same flow the same life of a task."""
    assert Flow.of(Import) is Flow.of(Import)
    assert task_flow(Flow.of(Import)) is task_flow(Flow.of(Import))
    assert task_flow(None) is task_flow(None)


def test_the_table_cannot_be_changed() -> None:
    """Nobody widens a flow at run time."""
    with pytest.raises(TypeError):
        Flow.of(Import).table["INDEXING"] = ("READING",)  # type: ignore[index]


def test_a_flow_is_printed_with_its_states() -> None:
    """A debugger shows whose flow it is."""
    assert repr(Flow.of(Import)) == "<Flow Import: READING, IMPORTING, INDEXING>"


def test_a_state_that_another_release_stored_is_refused_with_that_reason() -> None:
    """From an unknown state no move passes, and the error says why."""
    error = refusal(Flow.of(Import), "ARCHIVING", "INDEXING")

    assert "'ARCHIVING' is no state of Import" in error.why
    assert "another release" in error.why
    assert Flow.of(Import).allowed("ARCHIVING") == ()


# --- the open set --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GOING_TO_SLEEP", "a", "x" * 50, "in progress", "pending", "Ü"])
def test_an_open_flow_takes_any_name(name: str) -> None:
    """Without declared states any printable name is entered from STARTED, itself and others."""
    flow = task_flow(None)

    assert flow.open
    assert flow.name_of(name) == name
    assert passes(flow, "STARTED", name, by_hand=True)
    assert passes(flow, name, name, by_hand=True)
    assert passes(flow, name, "OTHER", by_hand=True)
    assert passes(flow, name, "SUCCESS")
    assert not passes(flow, "PENDING", name)
    assert not passes(flow, "SUCCESS", name)
    assert flow.allowed(name) == flow.allowed(ANY)
    assert flow.enterable(name) == (ANY,)


@pytest.mark.parametrize(
    "name", ["", "x" * 51, "a\nb", " a", "a ", "a\x1b[0m", "\u202ea", "\ud800"]
)
def test_an_open_flow_refuses_names_that_cannot_be_stored(name: str) -> None:
    """Empty, long, unprintable and padded names are no states, neither here nor there."""
    flow = task_flow(None)

    with pytest.raises(InvalidState):
        flow.name_of(name)
    assert not passes(flow, "STARTED", name)
    assert not passes(flow, name, "SUCCESS")


@pytest.mark.parametrize("name", sorted(RESERVED - set(LIFECYCLE)))
def test_an_open_flow_refuses_celerys_other_names(name: str) -> None:
    """RECEIVED, PROGRESS and UNKNOWN mean something else."""
    with pytest.raises(InvalidState):
        task_flow(None).name_of(name)
    assert not passes(task_flow(None), "STARTED", name)


def test_an_open_flow_takes_members_of_any_enum() -> None:
    """Old code passes members of its own Enum to ``update_state``; their stored name counts."""
    assert task_flow(None).name_of(Phase.FETCH) == "fetch rows"
    assert task_flow(None).name_of(Import.READING) == "READING"
    assert not Flow.of(Import).open


# --- the error -----------------------------------------------------------------------------------


def test_a_refused_move_names_its_facts() -> None:
    """The error carries task, id, both states, what is allowed, and no reason where none is."""
    error = refusal(Flow.of(Import), "IMPORTING", "READING")

    facts = (error.task, error.id, error.from_state, error.to_state, error.allowed, error.why)
    assert facts == ("shop.import", "4711", "IMPORTING", "READING", ("INDEXING",), "")
    assert "cannot move from IMPORTING to READING; allowed: INDEXING" in str(error)


def test_a_move_by_hand_lists_what_may_be_entered_by_hand() -> None:
    """User code is not told of states that it must not enter."""
    error = refusal(task_flow(Flow.of(Import)), "READING", "SUCCESS", by_hand=True)

    assert error.allowed == ("IMPORTING", "INDEXING")
    assert error.why == "SUCCESS belongs to the lifecycle and is not entered by hand"


def test_a_move_by_hand_of_a_task_that_does_not_run_says_so() -> None:
    """From PENDING, RETRY, LOST and the like nothing is entered by hand."""
    error = refusal(task_flow(Flow.of(Import)), "LOST", "READING", by_hand=True)

    assert (error.allowed, error.why) == ((), "no run stands in LOST")


def test_repeating_a_state_is_refused_unless_declared() -> None:
    """A state is entered again only where the flow says so."""
    assert not passes(Flow.of(Import), "READING", "READING")
    assert passes(Flow.of(Document), "DRAFT", "DRAFT")


@pytest.mark.parametrize(
    "rebuild",
    [lambda e: type(e)(*e.args), lambda e: pickle.loads(pickle.dumps(e))],
    ids=["args", "pickle"],
)
def test_a_refused_move_survives_the_way_from_a_worker(rebuild: Callable[[Any], Any]) -> None:
    """Rebuilt from its type and ``args`` the error says the same."""
    error = refusal(task_flow(Flow.of(Import)), "READING", "SUCCESS", by_hand=True)

    again = rebuild(error)

    assert type(again) is IllegalTransition
    assert vars(again) == vars(error)
    assert str(again) == str(error)


# --- guards --------------------------------------------------------------------------------------


def guarded(guard: Callable[[Any], Any]) -> Flow:
    return Flow.of(declare(letters("AB"), guards={("A", "B"): guard}))


def asking(subject: object) -> Any:
    """A guard whose answer is its subject, which it raises if it can be raised."""
    if isinstance(subject, BaseException):
        raise subject
    return subject


@pytest.mark.parametrize("answer", [True, None])
def test_a_guard_lets_pass(answer: object) -> None:
    """True and None say that the move may be made."""
    assert passes(guarded(asking), "A", "B", subject=answer)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (False, "its guard refuses"),
        ("the basket is empty", "the basket is empty"),
        (0, "its guard answered 0, no bool, None or sentence"),
        (1, "its guard answered 1, no bool, None or sentence"),
        ("", "its guard answered '', no bool, None or sentence"),
        ([], "its guard answered [], no bool, None or sentence"),
    ],
)
def test_a_guard_refuses(answer: object, why: str) -> None:
    """False, a sentence, and whatever is no answer, refuse; ``why`` says so."""
    error = refusal(guarded(asking), "A", "B", subject=answer)

    assert (error.why, error.allowed) == (why, ("B",))
    assert why in str(error)


@pytest.mark.parametrize(
    "raised",
    [
        Ignore(),
        Reject(),
        Retry(),
        SoftTimeLimitExceeded(),
        StoreUnavailable("redis://", "refused"),
        KeyError("total"),
        KeyboardInterrupt(),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_what_a_guard_raises_passes_through(raised: BaseException) -> None:
    """An outage, a time limit or a bug in the guard is no refusal."""
    with pytest.raises(type(raised)) as caught:
        guarded(asking).check("A", "B", task="t", id="i", subject=raised)

    assert caught.value is raised


def test_a_guard_is_asked_only_for_its_own_move() -> None:
    """Other moves, declared or not, never call it."""
    asked: list[object] = []
    states = declare(letters("ABC"), guards={("A", "B"): asked.append})
    flow = task_flow(Flow.of(states))

    for move in itertools.product(flow.states, flow.states):
        passes(flow, *move)
    assert len(asked) == 1
    assert passes(flow, "A", "B", subject="the order", by_hand=True)
    assert asked == [None, "the order"]


def test_a_guard_is_declared_in_the_body() -> None:
    """A function of the body is no member, and guards by name."""

    class Order(States):
        BASKET = "In the basket"
        PAID = "Paid"

        def has_items(self: Any) -> bool | str:
            return bool(self) or "the basket is empty"

        __guards__ = {("BASKET", "PAID"): has_items}

    assert passes(Flow.of(Order), "BASKET", "PAID", subject=["book"])
    assert refusal(Flow.of(Order), "BASKET", "PAID", subject=[]).why == "the basket is empty"


def test_flow_and_guards_may_name_members() -> None:
    """After the class they may be assigned with members for names."""

    class Order(States):
        BASKET = "In the basket"
        PAID = "Paid"

    Order.__flow__ = {Order.BASKET: Order.PAID, Order.PAID: [Order.BASKET]}
    Order.__guards__ = {(Order.BASKET, Order.PAID): bool}

    flow = Flow.of(Order)

    assert flow.table == {"BASKET": ("PAID",), "PAID": ("BASKET",)}
    assert flow.guards == {("BASKET", "PAID"): bool}


# --- names ---------------------------------------------------------------------------------------


def test_the_name_of_a_member_is_stored_and_its_value_shown() -> None:
    """States stores names; labels are the values."""
    flow = Flow.of(Import)

    assert [flow.name_of(member) for member in Import] == list(flow.states)
    assert flow.name_of("READING") == "READING"
    assert flow.labels["READING"] == "Reading the file"
    assert list(flow.labels) == list(flow.states)


def test_a_task_shows_labels_for_its_lifecycle_too() -> None:
    """Every state of a task has something to show."""
    flow = task_flow(Flow.of(Import))

    assert list(flow.labels) == list(flow.states)
    assert all(flow.labels.values())
    assert flow.name_of(Import.READING) == "READING"
    assert flow.name_of("REVOKED") == "REVOKED"


@pytest.mark.parametrize(
    "state",
    ["Reading the file", "reading", "", None, 5, ["READING"], b"READING", Import, Client.READY],
    ids=repr,
)
def test_what_is_no_state_is_refused(state: Any) -> None:
    """A label, another case, another type and another Enum's member are no states."""
    with pytest.raises(InvalidState) as caught:
        Flow.of(Import).name_of(state)

    assert caught.value.allowed == "READING, IMPORTING, INDEXING"


def test_a_member_of_another_enum_is_refused_though_its_name_is_equal() -> None:
    """Two tasks may both have a READING; they are not the same state."""

    class Export(States):
        READING = "Reading the table"

    class Text(str, enum.Enum):
        READING = "READING"

    for flow in (Flow.of(Import), task_flow(Flow.of(Import))):
        for member in (Export.READING, Text.READING):
            with pytest.raises(InvalidState):
                flow.name_of(member)


# --- the definition ------------------------------------------------------------------------------

FAULTS: Final = {
    "no class": (lambda: "READING", "no class of states", "states"),
    "no Enum": (lambda: dict, "no class of states", "states"),
    "a list": (lambda: ["READING"], "no class of states", "states"),
    "None": (lambda: None, "no class of states", "states"),
    "a member": (lambda: Import.READING, "no class of states", "states"),
    "no members": (lambda: declare({}), "no states", "Drawn"),
    "States itself": (lambda: States, "no states", "States"),
    "duplicate label": (
        lambda: declare({"A": "Paid", "B": "Paid"}),
        "duplicate label",
        "Drawn.B",
    ),
    "label no text": (lambda: declare({"A": 1}), "label is no text", "Drawn.A"),
    "label empty": (lambda: declare({"A": " "}), "label is no text", "Drawn.A"),
    "long name": (
        lambda: declare({"A" * 51: "a"}),
        "too long name of a state",
        f"Drawn.{'A' * 51}",
    ),
    "flow no mapping": (lambda: declare(letters("AB"), "A B"), "no flow", "Drawn.__flow__"),
    "flow of pairs": (lambda: declare(letters("AB"), [("A", "B")]), "no flow", "Drawn.__flow__"),
    "unknown key": (
        lambda: declare(letters("AB"), {"A": "B", "C": "A"}),
        "unknown state",
        "Drawn.__flow__",
    ),
    "label as key": (
        lambda: declare(letters("AB"), {"The A": "B"}),
        "unknown state",
        "Drawn.__flow__",
    ),
    "None as key": (lambda: declare(letters("AB"), {None: "B"}), "unknown state", "Drawn.__flow__"),
    "member of another enum as key": (
        lambda: declare({"READING": "a", "B": "b"}, {Import.READING: "B"}),
        "unknown state",
        "Drawn.__flow__",
    ),
    "unknown target": (
        lambda: declare(letters("AB"), {"A": "B C"}),
        "unknown state",
        "Drawn.__flow__['A']",
    ),
    "comma between targets": (
        lambda: declare(letters("ABC"), {"A": "B,C"}),
        "unknown state",
        "Drawn.__flow__['A']",
    ),
    "number as targets": (
        lambda: declare(letters("AB"), {"A": 5}),
        "no states to follow",
        "Drawn.__flow__['A']",
    ),
    "None as targets": (
        lambda: declare(letters("AB"), {"A": "B", "B": None}),
        "no states to follow",
        "Drawn.__flow__['B']",
    ),
    "bytes as targets": (
        lambda: declare(letters("AB"), {"A": b"B"}),
        "unknown state",
        "Drawn.__flow__['A']",
    ),
    "duplicate target": (
        lambda: declare(letters("AB"), {"A": "B B"}),
        "duplicate target",
        "Drawn.__flow__['A']",
    ),
    "unreachable": (
        lambda: declare(letters("ABC"), {"A": "B", "C": "B"}),
        "unreachable state",
        "Drawn.__flow__",
    ),
    "empty flow of two": (
        lambda: declare(letters("AB"), {}),
        "unreachable state",
        "Drawn.__flow__",
    ),
    "trap of one": (
        lambda: declare(letters("ABC"), {"A": "B C", "B": "B"}),
        "trap",
        "Drawn.__flow__",
    ),
    "trap of two": (
        lambda: declare(letters("ABCD"), {"A": "B D", "B": "C", "C": "B"}),
        "trap",
        "Drawn.__flow__",
    ),
    "guards no mapping": (
        lambda: declare(letters("AB"), guards=[bool]),
        "no guards",
        "Drawn.__guards__",
    ),
    "guard of text": (
        lambda: declare(letters("AB"), guards={"AB": bool}),
        "no transition",
        "Drawn.__guards__",
    ),
    "guard of three": (
        lambda: declare(letters("ABC"), guards={("A", "B", "C"): bool}),
        "no transition",
        "Drawn.__guards__",
    ),
    "guard of an unknown state": (
        lambda: declare(letters("AB"), guards={("A", "C"): bool}),
        "unknown state",
        "Drawn.__guards__",
    ),
    "guard of an undeclared transition": (
        lambda: declare(letters("AB"), guards={("B", "A"): bool}),
        "guard of an undeclared transition",
        "Drawn.__guards__",
    ),
    "guard not callable": (
        lambda: declare(letters("AB"), guards={("A", "B"): True}),
        "no guard",
        "Drawn.__guards__",
    ),
}


@pytest.mark.parametrize(("build", "what", "path"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_definition_is_refused_by_name(
    build: Callable[[], Any], what: str, path: str
) -> None:
    """Each fault has its own words and its place, each time it is asked for."""
    states = build()
    for _ in range(2):
        with pytest.raises(InvalidDefinition) as caught:
            Flow.of(states)

        assert (caught.value.what, caught.value.path) == (what, path)
        assert caught.value.allowed


def test_a_state_may_be_given_once_in_a_flow() -> None:
    """A name and the member of that name are one key."""
    states = declare(letters("AB"))
    states.__flow__ = {"A": "B", states["A"]: "B"}  # type: ignore[attr-defined]

    with pytest.raises(InvalidDefinition, match="state given twice"):
        Flow.of(states)


def test_a_transition_may_be_guarded_once() -> None:
    """A pair of names and the pair of those members are one transition."""
    states = declare(letters("AB"))
    states.__guards__ = {("A", "B"): bool, (states["A"], "B"): bool}  # type: ignore[attr-defined]

    with pytest.raises(InvalidDefinition, match="transition guarded twice"):
        Flow.of(states)


def test_a_guard_may_not_be_async() -> None:
    """The answer of an async guard would come too late."""

    async def paid(_: object) -> bool:
        return True

    with pytest.raises(InvalidDefinition, match="not async"):
        guarded(paid)


def test_states_after_each_other_for_ever_are_no_trap() -> None:
    """A flow without final states may go round; with one, each state must lead there."""
    assert Flow.of(declare(letters("AB"), {"A": "B", "B": "A"})).finals == frozenset()


def test_a_set_of_targets_is_put_in_the_order_declared() -> None:
    """Next states never depend on how Python hashes text."""
    states = declare(letters("ABCDEFG"), {"A": set("GFEDCB")})

    assert Flow.of(states).allowed("A") == tuple("BCDEFG")


@pytest.mark.parametrize("name", sorted(RESERVED))
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title], ids=["upper", "lower", "title"])
def test_a_task_may_not_declare_a_reserved_name(name: str, case: Callable[[str], str]) -> None:
    """Celery's names, in any case of letters, are refused to a task and free to a client."""
    declared = Flow.of(declare({"A": "a", case(name): "b"}))

    with pytest.raises(InvalidDefinition) as caught:
        task_flow(declared)

    assert (caught.value.what, caught.value.path) == ("reserved name of a state", "Drawn")
    assert case(name) in caught.value.got


@st.composite
def rows(draw: st.DrawFn) -> dict[str, list[str]]:
    """For each of one to six states, which others are named to follow."""
    names = "ABCDEF"[: draw(st.integers(1, 6))]
    return {name: draw(st.lists(st.sampled_from(names), unique=True)) for name in names}


def ways(table: dict[str, list[str]]) -> set[tuple[str, str]]:
    """All pairs with a way of at least one step (Warshall)."""
    found = {(a, b) for a, nexts in table.items() for b in nexts}
    for over in table:
        found |= {(a, b) for a in table for b in table if {(a, over), (over, b)} <= found}
    return found


@settings(deadline=None)
@given(rows(), st.sampled_from([" ".join, list, tuple, iter, dict.fromkeys]))
def test_a_drawn_flow_allows_exactly_its_table_or_is_refused(
    drawn: dict[str, list[str]], form: Callable[[list[str]], Any]
) -> None:
    """A flow is accepted if all is reached and nothing trapped, and then it is the table."""
    states = declare(letters("".join(drawn)), {name: form(nexts) for name, nexts in drawn.items()})
    found = ways(drawn)
    finals = {name for name, nexts in drawn.items() if not nexts}
    reached = all(name == "A" or ("A", name) in found for name in drawn)
    trapped = any(n not in finals and not any((n, f) in found for f in finals) for n in drawn)

    if not reached or (finals and trapped):
        with pytest.raises(InvalidDefinition, match=r"unreachable state|trap"):
            Flow.of(states)
        return

    flow = Flow.of(states)
    moves = {(a, b) for a, nexts in drawn.items() for b in nexts}
    assert {p for p in itertools.product(drawn, drawn) if passes(flow, *p)} == moves
    assert flow.finals == finals
    around = task_flow(flow)
    assert {p for p in itertools.product(drawn, drawn) if passes(around, *p)} == moves
    for picture in (flow, around):
        assert read_mermaid(picture.mermaid()) == moves_of(picture)
        assert read_markdown(picture.markdown()) == dict(picture.table)


# --- the pictures --------------------------------------------------------------------------------


def moves_of(flow: Flow) -> set[tuple[str, str]]:
    """All moves, with ``[*]`` before the initial state and after the final ones."""
    moves = {(a, b) for a, nexts in flow.table.items() for b in nexts}
    return moves | {("[*]", flow.initial)} | {(end, "[*]") for end in flow.finals}


def shown(text: str) -> str:
    """What Mermaid shows for its source."""
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text)


def closed(moves: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """``moves`` with all that follow by skipping."""
    while more := {(a, d) for a, b in moves for c, d in moves if b == c} - moves:
        moves = moves | more
    return moves


def read_mermaid(source: str) -> set[tuple[str, str]]:
    """The moves that a reader sees in the picture, by the rules that ``Flow.mermaid`` tells."""
    title, *lines = source.splitlines()
    assert title == "stateDiagram-v2"
    names: dict[str, list[str]] = {}
    inner: list[str] = []
    skipping = inside = False
    arrows: list[tuple[bool, str, str]] = []
    for line in map(str.strip, lines):
        if frame := re.fullmatch(r'state "(an attempt.*)" as attempt \{', line):
            inside, skipping = True, "states may be skipped" in frame[1]
            assert "a new one begins again" in frame[1]
        elif line == "}":
            inside = False
        elif box := re.fullmatch(r'state "([^"]+)" as (\w+)', line):
            one = box[2].startswith("s")
            texts = [box[1].split(": ")[0]] if one else box[1].split(", ")
            names[box[2]] = [shown(text) for text in texts]
            inner += names[box[2]] if inside else []
        elif arrow := re.fullmatch(r"(\S+) --> (\S+)( : (guarded|if \S+))?", line):
            arrows.append((inside, arrow[1], arrow[2]))
        else:
            assert re.fullmatch(r"note right of \w+ : forward, and states may be skipped", line)
            skipping = True
    starts = {names[b][0] for within, a, b in arrows if within and a == "[*]"}
    leaving, entering = {"attempt": inner} | names, {"attempt": list(starts)} | names
    steps: set[tuple[str, str]] = {(state, start) for state in inner for start in starts}
    run: set[tuple[str, str]] = set()
    for within, a, b in arrows:
        if within and a == "[*]":
            continue
        pairs = set(itertools.product(leaving.get(a, ["[*]"]), entering.get(b, ["[*]"])))
        if (within or not inner) and "[*]" not in (a, b):
            run |= pairs
        else:
            steps |= pairs
    return steps | (closed(run) if skipping else run)


def read_markdown(source: str) -> dict[str, tuple[str, ...]]:
    """The table that a reader sees."""
    head, rule, *rows = source.splitlines()
    assert (head, rule) == ("| State | Label | May go to |", "| --- | --- | --- |")
    found = {}
    for row in rows:
        before, state, label, nexts, after = row.split("|")
        assert (before, after) == ("", "")
        assert label.strip()
        targets = () if nexts == " — " else nexts.strip().split(", ")
        found[html.unescape(state.strip())] = tuple(map(html.unescape, targets))
    return found


@each_flow
def test_the_diagram_shows_exactly_the_table(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """Read back by its own rules, the Mermaid text gives every move and no other."""
    assert read_mermaid(flow.mermaid()) == moves_of(flow)
    assert set(flow.table) == set(expected)


@each_flow
def test_the_markdown_table_shows_exactly_the_table(
    flow: Flow, expected: dict[str, str | list[str]]
) -> None:
    """Read back, the Markdown gives each row."""
    assert read_markdown(flow.markdown()) == table(expected)


def test_the_diagram_of_a_task_stays_small() -> None:
    """Ten states in a row make ten arrows in the frame, not fifty-five, and fourteen around it."""
    flow = task_flow(Flow.of(declare(letters("ABCDEFGHIJ"))))

    arrows = [line for line in flow.mermaid().splitlines() if " --> " in line and "[*]" not in line]

    assert len([line for line in arrows if line.startswith("        ")]) == 10
    assert len([line for line in arrows if not line.startswith("        ")]) == 14
    assert read_mermaid(flow.mermaid()) == moves_of(flow)


def test_the_diagram_of_a_client_is_as_documented() -> None:
    """The whole text of a small diagram."""
    assert Flow.of(declare(letters("ABC"), {"A": "B", "B": "A C"})).mermaid() == (
        "stateDiagram-v2\n"
        '    state "A: The A" as s_A\n'
        '    state "B: The B" as s_B\n'
        '    state "C: The C" as s_C\n'
        "    [*] --> s_A\n"
        "    s_A --> s_B\n"
        "    s_B --> s_A\n"
        "    s_B --> s_C\n"
        "    s_C --> [*]"
    )


def test_a_guarded_move_is_always_drawn_with_its_condition() -> None:
    """A guard is named if it has a name, also on a move that skips states."""

    def is_paid(_: object) -> bool:
        return True

    states = declare(letters("ABC"), guards={("A", "C"): is_paid, ("B", "C"): lambda _: True})
    flow = Flow.of(states)

    assert "    s_A --> s_C : if is_paid" in flow.mermaid().splitlines()
    assert "    s_B --> s_C : guarded" in flow.mermaid().splitlines()
    assert read_mermaid(flow.mermaid()) == moves_of(flow)


@pytest.mark.parametrize(
    "label",
    [
        'a "quoted" one',
        "a: b --> c",
        "two\nlines",
        "<script>alert(1)</script>",
        "a | b \\| c",
        "**bold** _i_ `code` [x](y)",
        "#35; &amp; %% ;",
        "1. first",
        "- item",
        "\x1b[31mred\x00",
        "\ud800",
        "state end note { }",
        "redirection LR, Direction TB",
        "naïve Ü 雪 👩‍🚀",
    ],
)
def test_a_label_cannot_break_a_picture(label: str) -> None:
    """Whatever a label holds, it stays one line of text, and the moves stay what they are."""
    states = declare({"A": f"x {label} x", "B": "b"})
    flow = Flow.of(states)

    _, row, *_ = flow.mermaid().splitlines()
    text = re.fullmatch(r'    state "A: ([^"]+)" as s_A', row)
    assert text
    plain = " ".join(re.sub(r"[\x00-\x1f\ud800]", " ", f"x {label} x").split())
    assert shown(text[1]) == plain
    assert not set(re.sub(r"#\d+;", "", text[1])) & set('"<>|\\*`[]{}:;#&%')
    # Mermaid 11 turns the whole line into a direction of drawing, wherever it finds these words.
    assert not re.search(r"direction\s+(TB|BT|LR|RL)", row, re.IGNORECASE)
    assert read_mermaid(flow.mermaid()) == moves_of(flow)
    assert read_markdown(flow.markdown()) == dict(flow.table)
    assert html.unescape(flow.markdown().splitlines()[2].split(" | ")[1]) == plain


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name.isprintable() and name == name.strip()
)


@settings(deadline=None)
@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_any_stored_name_stands_in_the_pictures(drawn: list[str]) -> None:
    """Names of a foreign Enum are free text; the pictures show them and nothing else."""
    members = {f"M{at}": name for at, name in enumerate(drawn)}
    flow = Flow.of(declare(members, bases=(str, enum.Enum)))

    assert flow.states == tuple(drawn)
    assert read_mermaid(flow.mermaid()) == moves_of(flow)
    assert read_markdown(flow.markdown()) == dict(flow.table)
    if not {name.upper() for name in drawn} & RESERVED:
        assert read_mermaid(task_flow(flow).mermaid()) == moves_of(task_flow(flow))
