"""States of other people's Enums: StrEnum, (str, Enum), plain Enum, Django's choices."""

from __future__ import annotations

import enum
import sys
from typing import Any, Final

import pytest

from celery_statekit.errors import IllegalTransition, InvalidDefinition, InvalidState
from celery_statekit.states import Flow, task_flow


class Text(str, enum.Enum):
    DRAFT = "draft"
    REVIEW = "in review"
    DONE = "done"

    __flow__ = {"draft": ["in review"], "in review": ("done", "draft")}
    __guards__ = {("in review", "done"): lambda document: document == "approved"}


class Plain(enum.Enum):
    DRAFT = "draft"
    DONE = "done"


class Number(enum.Enum):
    DRAFT = 1
    DONE = 2


def test_values_are_stored_where_all_are_text() -> None:
    """What users' own columns hold is what we store; the member's name is the label."""
    flow = Flow.of(Text)

    assert flow.states == ("draft", "in review", "done")
    assert flow.labels == {"draft": "DRAFT", "in review": "REVIEW", "done": "DONE"}
    assert flow.name_of(Text.REVIEW) == flow.name_of("in review") == "in review"
    assert type(flow.name_of(Text.REVIEW)) is str
    assert Flow.of(Plain).states == ("draft", "done")


def test_names_are_stored_where_no_value_is_text() -> None:
    """Numbers are no names; then members are stored by name."""
    flow = Flow.of(Number)

    assert flow.states == ("DRAFT", "DONE")
    assert flow.labels == {"DRAFT": "DRAFT", "DONE": "DONE"}
    assert flow.name_of(Number.DONE) == "DONE"


def test_a_foreign_enum_may_carry_flow_and_guards() -> None:
    """``__flow__`` and ``__guards__`` of the body are no members and are obeyed."""
    flow = Flow.of(Text)

    assert flow.table == {"draft": ("in review",), "in review": ("done", "draft"), "done": ()}
    flow.check("in review", "done", task="t", id="i", subject="approved")
    with pytest.raises(IllegalTransition, match="guard refuses"):
        flow.check("in review", "done", task="t", id="i", subject="rejected")


def test_a_foreign_enum_goes_forward_by_itself() -> None:
    """Without ``__flow__``: in the order written, skipping allowed."""
    assert Flow.of(Plain).table == {"draft": ("done",), "done": ()}
    assert task_flow(Flow.of(Plain)).enterable("STARTED") == ("draft", "done")


def test_the_name_of_a_member_is_not_what_is_stored() -> None:
    """One name for one state: DRAFT is stored as draft, and is no second name for it."""
    with pytest.raises(InvalidState):
        Flow.of(Text).name_of("DRAFT")


def test_members_may_stand_in_the_flow() -> None:
    """A single member is one target, though it is text with a blank in it."""

    class Review(str, enum.Enum):
        DRAFT = "draft"
        REVIEW = "in review"

    Review.__flow__ = {Review.DRAFT: Review.REVIEW}  # type: ignore[attr-defined]

    assert Flow.of(Review).allowed("draft") == ("in review",)


def test_names_of_the_body_stand_for_stored_names() -> None:
    """In the body of a (str, Enum) its names are its values, so they may be written plainly."""

    class Review(str, enum.Enum):
        DRAFT = "draft"
        REVIEW = "in review"

        __flow__ = {DRAFT: [REVIEW], REVIEW: [DRAFT]}

    assert Flow.of(Review).table == {"draft": ("in review",), "in review": ("draft",)}


def test_a_member_may_be_called_label() -> None:
    """``label`` is a member here, not what is shown of the others."""

    class Annotation(str, enum.Enum):
        fetch = "fetch"
        label = "label"

    assert Flow.of(Annotation).labels == {"fetch": "fetch", "label": "label"}


def test_a_method_called_label_is_not_shown() -> None:
    """Only a label that is a text is one."""

    class Step(enum.Enum):
        FETCH = "fetch"

        def label(self) -> str:
            return "x"

    assert Flow.of(Step).labels == {"fetch": "FETCH"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="StrEnum is new in Python 3.11")
def test_a_str_enum_stores_its_values() -> None:
    """``StrEnum`` with ``auto()`` stores the lower-case names that it makes."""

    class Step(enum.StrEnum):
        FETCH = enum.auto()
        PARSE = enum.auto()

    assert Flow.of(Step).states == ("fetch", "parse")


def mixed() -> Any:
    class Mixed(enum.Enum):
        A = "a"
        B = 2

    return Mixed


def equal() -> Any:
    class Equal(str, enum.Enum):
        A = "a"
        B = "a"  # noqa: PIE796 - this is the fault

    return Equal


def named(name: str) -> Any:
    return enum.Enum("Named", {"A": "a", "B": name}, type=str)


FAULTS: Final = {
    "mixed": (mixed(), "no text among values that are", "Mixed.B"),
    "equal values": (equal(), "duplicate value", "Equal.B"),
    "empty": (named(""), "empty name of a state", "Named.B"),
    "long": (named("x" * 51), "too long name of a state", "Named.B"),
    "newline": (named("a\nb"), "name of a state is not printable", "Named.B"),
    "escape": (named("a\x1b[31m"), "name of a state is not printable", "Named.B"),
    "direction": (named("a\u202eb"), "name of a state is not printable", "Named.B"),
    "surrogate": (named("\ud800"), "name of a state is not printable", "Named.B"),
    "leading blank": (named(" b"), "name of a state with a blank at an end", "Named.B"),
    "trailing blank": (named("b "), "name of a state with a blank at an end", "Named.B"),
}


@pytest.mark.parametrize(("states", "what", "path"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_enum_is_refused_by_name(states: Any, what: str, path: str) -> None:
    """A stored name must be fit for a column, a log line and a key."""
    with pytest.raises(InvalidDefinition) as caught:
        Flow.of(states)

    assert (caught.value.what, caught.value.path) == (what, path)


def test_fifty_characters_are_not_too_long() -> None:
    """The limit is what Celery's database backend holds, in characters."""
    assert Flow.of(named("雪" * 50)).states == ("a", "雪" * 50)


def test_two_members_may_not_share_a_label() -> None:
    """Who reads the label could not tell them apart."""

    class Twin(enum.Enum):
        A = "a"
        B = "b"

        @property
        def label(self) -> str:
            return "Twin"

    with pytest.raises(InvalidDefinition, match="duplicate label"):
        Flow.of(Twin)


# --- Django --------------------------------------------------------------------------------------


def test_text_choices_store_values_and_show_labels() -> None:
    """Django's TextChoices: value and label are Django's, the flow stands in the body."""
    models = pytest.importorskip("django.db.models")

    class Order(models.TextChoices):
        BASKET = "basket", "In the basket"
        PAID = "paid", "Paid"
        SHIPPED = "shipped", "On its way"

        __flow__ = {"basket": "paid", "paid": "shipped basket"}

    flow = Flow.of(Order)

    assert flow.states == tuple(Order.values)
    assert list(flow.labels.items()) == Order.choices
    assert flow.table == {"basket": ("paid",), "paid": ("shipped", "basket"), "shipped": ()}
    assert flow.name_of(Order.PAID) == "paid"


def test_integer_choices_store_names_and_show_labels() -> None:
    """Django's IntegerChoices: numbers are no names, the labels are Django's."""
    models = pytest.importorskip("django.db.models")

    class Priority(models.IntegerChoices):
        LOW = 1, "Not urgent"
        HIGH = 2, "Urgent"

    assert Flow.of(Priority).labels == {"LOW": "Not urgent", "HIGH": "Urgent"}


def test_a_label_is_translated_when_it_is_shown() -> None:
    """Labels may be lazy: nothing is read at definition, when Django may not be ready."""
    models = pytest.importorskip("django.db.models")
    functional = pytest.importorskip("django.utils.functional")
    language: list[str] = []
    translated = functional.lazy(lambda text: f"{text} ({language[-1]})", str)

    class Order(models.TextChoices):
        BASKET = "basket", translated("In the basket")
        PAID = "paid", translated("Paid")

    flow = task_flow(Flow.of(Order))
    for language[:] in (["en"], ["de"]):
        assert flow.labels["paid"] == f"Paid ({language[0]})"
        assert f"basket: In the basket #40;{language[0]}#41;" in flow.mermaid()
