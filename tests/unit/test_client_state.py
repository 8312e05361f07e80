"""ClientState: declared like a dataclass, moved by its flow, checked wherever it becomes JSON."""

from __future__ import annotations

import copy
import enum
import json
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar, Literal
from uuid import UUID

import pytest
from django.db.models import TextChoices
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from kombu.serialization import dumps as kombu_dumps
from kombu.utils import json as kombu_json

from celery_statekit.client import Action, ClientState, ClientStates, Move
from celery_statekit.errors import (
    IllegalTransition,
    InvalidClientState,
    InvalidDefinition,
    InvalidId,
    InvalidInput,
    InvalidState,
    PayloadTooLarge,
)
from celery_statekit.record import Limits
from celery_statekit.states import Flow, States

ROOM = Limits().record_bytes


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"
    SHIPPED = "Shipped"

    __guards__ = {("PAID", "SHIPPED"): lambda order: bool(order.items) or "nothing to ship"}


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(TextChoices):
    SMALL = "s", "Small"
    LARGE = "l", "Large"


@dataclass
class Address:
    street: str
    number: int = 1
    moved_in: date | None = None


@dataclass
class OldAddress(Address):
    until: str = ""


class Order(ClientState, states=OrderStates):
    items: list[str] = []


class Everything(ClientState, states=OrderStates):
    text: str = ""
    count: int = 0
    share: float = 0.0
    yes: bool = False
    anything: Any = None
    names: list[str] = []
    pair: tuple[int, str] = (1, "a")
    tags: set[str] = set()
    fixed: frozenset[int] = frozenset()
    prices: dict[str, Decimal] = {}
    address: Address | None = None
    homes: list[Address] = []
    color: Color = Color.RED
    size: Size = Size.SMALL
    sizes: list[Size] = []
    way: Literal["in", "out"] = "in"
    at: datetime | None = None
    day: date | None = None
    hour: time | None = None
    took: timedelta | None = None
    price: Decimal = Decimal(0)
    key: UUID | None = None
    raw: bytes = b""


def order_document(**changes: Any) -> dict[str, Any]:
    return {"client_id": "o-17", "state": "BASKET", "version": 1, "items": ["book"], **changes}


def through_json(client: ClientState) -> Any:
    return type(client).from_json(client.to_json())


def through_kombu(client: ClientState) -> Any:
    return type(client).from_dict(kombu_json.loads(kombu_json.dumps(client)))


# --- the class statement --------------------------------------------------------------------------


def test_fields_are_given_by_keyword_and_the_id_by_place() -> None:
    """The id is the one positional argument; fields are keywords, with their defaults."""
    order = Order("o-17", items=["book"])

    assert (order.client_id, order.items, order.state) == ("o-17", ["book"], "BASKET")
    with pytest.raises(TypeError):
        Order("o-17", ["book"])  # type: ignore[misc]
    with pytest.raises(TypeError):
        Order("o-17", colour="red")  # type: ignore[call-arg]


def test_mutable_defaults_are_never_shared() -> None:
    """Each client has its own copy of a default: list, dict, set, dataclass, and what is in them."""
    elm = Address("Elm")
    names = {"a": ["b"]}

    class Customer(ClientState):
        seen: set[str] = set()
        home: Address = elm
        named: dict[str, list[str]] = names

    first, second = Customer("1"), Customer("2")
    first.seen.add("x")
    first.home.street = "Oak"
    first.named["a"].append("c")
    names["z"] = []

    assert (second.seen, second.home, second.named) == (set(), Address("Elm"), {"a": ["b"]})
    assert (Customer("3").named, elm.street) == ({"a": ["b"]}, "Elm")


def test_a_class_variable_is_no_field() -> None:
    """What is annotated as ClassVar, or not at all, is shared and not stored."""

    class Customer(ClientState):
        seen: ClassVar[list[str]] = []
        rate = 5

    assert Customer("1").seen is Customer("2").seen
    assert set(Customer("1").to_dict()) == {"client_id", "state", "version", "actions"}


def test_a_subclass_has_the_fields_states_and_version_of_its_base() -> None:
    """All is inherited but the kind; a field may get another default, a method be extended."""

    class Base(ClientState, states=OrderStates, version=3, kind="base"):
        items: list[str] = ["a"]
        total: int

    class Gift(Base):
        items: list[str] = ["b"]
        to: str = ""

    gift = Gift("g", total=1)

    assert Base.kind == "base"
    assert (Gift.kind, Gift.version, Gift.states) == ("Gift", 3, OrderStates)
    assert (gift.items, gift.total, gift.to) == (["b"], 1, "")
    assert Base("b", total=1).items == ["a"]
    assert through_json(gift) == gift


def test_a_subclass_may_have_states_of_its_own() -> None:
    """``states=`` of a subclass replaces those of its base."""

    class Parcel(Order, states=Color):
        pass

    assert Parcel("p").available_states == ("red", "blue")
    assert Order("o").available_states == ("BASKET", "PAID", "SHIPPED")


@pytest.mark.parametrize(
    "name",
    [
        *("client_id", "state", "states", "version", "kind", "moves", "enter", "actions", "flow"),
        *("action", "to_dict", "from_json", "next_states", "upgrade", "_state"),
    ],
)
def test_a_field_may_not_hide_the_api(name: str) -> None:
    """A field named like something of ClientState is refused, and the error names it."""
    with pytest.raises(InvalidDefinition) as caught:
        type(ClientState)("Bad", (ClientState,), {"__annotations__": {name: "int"}, name: 1})

    assert caught.value.path == f"Bad.{name}"


@pytest.mark.parametrize("name", ["version", "states", "kind", "state", "client_id"])
def test_an_option_given_as_an_attribute_is_refused(name: str) -> None:
    """``version = 2`` in the body would do nothing: the error says that it is a class option."""
    with pytest.raises(InvalidDefinition, match="options of the class"):
        type(ClientState)("Bad", (ClientState,), {name: 2})


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "2", 2**63])
def test_a_version_is_a_number_from_one(version: Any) -> None:
    """``version=`` takes a positive int that 64 bits hold, and nothing like one."""
    with pytest.raises(InvalidDefinition, match="version"):
        type(ClientState)("Bad", (ClientState,), {}, version=version)


@pytest.mark.parametrize("kind", ["", "a\nb", "k" * 201, 5])
def test_a_kind_is_short_printable_text(kind: Any) -> None:
    """``kind=`` stands in keys and logs."""
    with pytest.raises(InvalidDefinition, match="kind"):
        type(ClientState)("Bad", (ClientState,), {}, kind=kind)


@pytest.mark.parametrize("states", ["PAID", ["A", "B"], str, 5])
def test_states_are_an_enum(states: Any) -> None:
    """``states=`` takes an Enum class."""
    with pytest.raises(InvalidDefinition):
        type(ClientState)("Bad", (ClientState,), {}, states=states)


class Opaque:
    pass


class Plain:
    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize(
    "annotation",
    [
        Opaque,
        list[Opaque],
        dict[str, Opaque],
        object,
        complex,
        type[int],
        dict[int, str],
        dict[UUID, str],
        list[dict[date, str]],
        Order,
        list[Order],
        OrderStates,
        "Opaque",
        "Order | None",
        int | Opaque,
        list[int] | set[int],
    ],
)
def test_a_field_that_json_cannot_hold_is_refused_by_the_class_statement(annotation: Any) -> None:
    """A type that msgspec cannot convert, or JSON not hold, is an error where it is declared."""
    space = {"__annotations__": {"thing": annotation}, "__module__": __name__}
    with pytest.raises(InvalidDefinition, match=r"Bad"):
        type(ClientState)("Bad", (ClientState,), space)


def test_annotations_may_speak_of_what_is_defined_later() -> None:
    """A name that is not defined yet is resolved at first use, where a missing one is an error."""
    module: dict[str, Any] = {"__name__": __name__, "ClientState": ClientState}
    source = "class Early(ClientState):\n    home: 'Later_ | None' = None\n"
    exec(compile(source, "early", "exec", dont_inherit=True), module)
    early = module["Early"]("e")

    with pytest.raises(InvalidDefinition, match="Later_"):
        early.to_dict()
    globals()["Later_"] = Address
    try:
        assert early.to_dict()["home"] is None
    finally:
        del globals()["Later_"]


def test_real_and_textual_annotations_mean_the_same() -> None:
    """Without ``from __future__ import annotations`` a class declares the same fields."""
    module: dict[str, Any] = {"__name__": __name__, "ClientState": ClientState, "Address": Address}
    source = (
        "from typing import ClassVar\n"
        "class Real(ClientState):\n"
        "    home: Address | None = None\n"
        "    names: list[str] = []\n"
        "    shared: ClassVar[list[str]] = []\n"
    )
    exec(compile(source, "real", "exec", dont_inherit=True), module)
    real = module["Real"]("r", home=Address("Elm"))

    assert through_json(real) == real
    assert real.names is not module["Real"]("s").names


def test_a_class_inside_a_function_works_with_types_of_the_module() -> None:
    """A function-local class is as good as any, unless its annotations name other local ones."""

    class Local(ClientState):
        home: Address | None = None

    @dataclass
    class Hidden:
        x: int

    class Lost(ClientState):
        hidden: Hidden | None = None

    assert through_json(Local("l", home=Address("Elm"))) == Local("l", home=Address("Elm"))
    with pytest.raises(InvalidDefinition, match="top level"):
        Lost("l").to_dict()


# --- typed fields ---------------------------------------------------------------------------------


def test_every_kind_of_field_comes_back_as_it_was() -> None:
    """Dataclasses, containers, enums, times, decimals, ids and bytes survive JSON and kombu."""
    client = Everything(
        "e-1",
        text="Füße",
        count=2**200,
        share=-0.0,
        yes=True,
        anything={"a": [1, None, "x", 1.5]},
        names=["b"],
        pair=(2, "b"),
        tags={"x", "y"},
        fixed=frozenset({1, 2}),
        prices={"book": Decimal("1.10")},
        address=Address("Elm", 3, date(2020, 2, 29)),
        homes=[Address("Oak"), Address("Ash")],
        color=Color.BLUE,
        size=Size.LARGE,
        sizes=[Size.SMALL, Size.LARGE],
        way="out",
        at=datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        day=date(1, 1, 1),
        hour=time(23, 59, 59, 999999),
        took=timedelta(days=-1, microseconds=3),
        price=Decimal("1E+3"),
        key=UUID(int=5),
        raw=b"\x00\xff",
    )

    for same in (through_json(client), through_kombu(client)):
        assert same == client
        assert [type(getattr(same, name)) for name in vars(client)] == [
            type(value) for value in vars(client).values()
        ]
        assert math.copysign(1, same.share) == -1
    assert json.loads(client.to_json()) == client.to_dict()


@pytest.mark.parametrize(
    ("changes", "path", "allowed"),
    [
        ({"items": 5}, "$.items", "list[str]"),
        ({"items": ["a", 5]}, "$.items[1]", "list[str]"),
        ({"items": None}, "$.items", "list[str]"),
        ({"items": "book"}, "$.items", "list[str]"),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(
    changes: dict[str, Any], path: str, allowed: str
) -> None:
    """The error names the path, what was got, and what the field declares."""
    with pytest.raises(InvalidClientState) as caught:
        Order.from_dict(order_document(**changes))

    assert caught.value.path == path
    assert caught.value.allowed == f"items: {allowed}"


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("count", "5", "$.count"),
        ("count", 1.0, "$.count"),
        ("count", True, "$.count"),
        ("share", "0.5", "$.share"),
        ("share", 10**400, "$.share"),
        ("text", 5, "$.text"),
        ("yes", 1, "$.yes"),
        ("yes", "true", "$.yes"),
        ("pair", [1], "$.pair"),
        ("pair", [1, 2], "$.pair[1]"),
        ("tags", [5], "$.tags[0]"),
        ("prices", {"a": "much"}, "$.prices[...]"),
        ("price", "NaN", "$.price"),
        ("price", "Infinity", "$.price"),
        ("price", "one", "$.price"),
        ("address", {"street": 5}, "$.address.street"),
        ("address", {}, "$.address"),
        ("homes", [{"street": "Elm"}, {"street": "Oak", "number": "1"}], "$.homes[1].number"),
        ("color", "green", "$.color"),
        ("color", "RED", "$.color"),
        ("size", "xl", "$.size"),
        ("sizes", ["s", 1], "$.sizes[1]"),
        ("way", "up", "$.way"),
        ("at", "yesterday", "$.at"),
        ("at", 5, "$.at"),
        ("day", "2023-02-29", "$.day"),
        ("took", "1 day", "$.took"),
        ("key", "5", "$.key"),
        ("raw", "a", "$.raw"),
    ],
)
def test_nothing_is_coerced(name: str, value: Any, path: str) -> None:
    """No text becomes a number, no number text; dates, enums and the like only from their form."""
    document = {"client_id": "e", "state": "BASKET", "version": 1, name: value}
    with pytest.raises(InvalidClientState) as caught:
        Everything.from_dict(document)

    assert caught.value.path == path


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("text", 5, "$.text"),
        ("text", datetime(2024, 1, 1, tzinfo=timezone.utc), "$.text"),
        ("text", b"a", "$.text"),
        ("names", 5, "$.names"),
        ("names", ["a", None], "$.names[1]"),
        ("address", Opaque(), "$.address"),
        ("address", Address(5), "$.address.street"),  # type: ignore[arg-type]
        ("address", OldAddress("Elm", until="1999"), "$.address"),
        ("address", Address, "$.address"),
        ("homes", [Address("Elm"), OldAddress("Oak")], "$.homes[1]"),
        ("price", Decimal("NaN"), "$.price"),
        ("price", Decimal("sNaN"), "$.price"),
        ("prices", {"a": Decimal("Infinity")}, "$.prices.a"),
        ("share", math.nan, "$.share"),
        ("share", math.inf, "$.share"),
        ("color", "green", "$.color"),
        ("anything", Color.RED, "$.anything"),
        ("anything", {"a": [date(2024, 1, 1)]}, "$.anything.a[0]"),
        ("anything", {1, 2}, "$.anything"),
        ("anything", Address("Elm"), "$.anything"),
        ("anything", b"", "$.anything"),
        ("anything", len, "$.anything"),
        ("anything", int, "$.anything"),
        ("anything", {"a b": {1: 2}}, "$.anything['a b']"),
        ("anything", {None: 1}, "$.anything"),
        ("anything", ["\ud800"], "$.anything[0]"),
        ("anything", {"\ud800": 1}, "$.anything"),
        pytest.param("anything", 10**5000, "$.anything", id="huge int"),
        ("anything", Order("o"), "$.anything"),
        # Its offset has seconds, which RFC 3339 has no form for: another moment would come back.
        ("at", datetime(1900, 1, 1, tzinfo=timezone(timedelta(seconds=61))), "$.at"),
        ("client_id", "", "$.client_id"),
        ("client_id", None, "$.client_id"),
    ],
)
def test_what_was_set_wrongly_is_never_written(name: str, value: Any, path: str) -> None:
    """Setting a field checks nothing; to_dict, to_json and kombu refuse, and say where."""
    client = Everything("e")
    setattr(client, name, value)

    for write in (client.to_dict, client.to_json, client.__json__):
        with pytest.raises(InvalidClientState) as caught:
            write()
        assert caught.value.path == path
    with pytest.raises(EncodeError, match="Everything"):
        kombu_dumps(client, serializer="json")


def test_a_field_takes_what_comes_back_equal() -> None:
    """A tuple for a list, a subclass of dict or str, and the JSON form of a value may be set."""

    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    client = Everything("e", names=("a", Name("b")), anything=OrderedDict(a=(1,)))
    client.text = Size.LARGE  # text choices are text
    client.color = "blue"  # type: ignore[assignment]

    same = through_json(client)

    assert (same.names, same.anything, same.text) == (["a", "b"], {"a": [1]}, "l")
    assert same.color is Color.BLUE
    assert type(same.names[1]) is str


class Hooked:
    called = False

    def __json__(self) -> str:
        Hooked.called = True
        return "forged"

    __repr__ = __str__ = __json__


@pytest.mark.parametrize("place", [lambda x: x, lambda x: [x], lambda x: {"a": x}])
def test_no_foreign_code_is_called(place: Any) -> None:
    """An object with a ``__json__`` hook is refused, read or written, and its hook not called."""
    client = Everything("e", anything=place(Hooked()))

    with pytest.raises(InvalidClientState):
        client.to_dict()
    with pytest.raises(InvalidClientState):
        Everything.from_dict({"client_id": "e", "state": "BASKET", "anything": place(Hooked())})
    assert not Hooked.called


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def looped() -> Any:
    value: Any = {"a": []}
    value["a"].append(value)
    return value


def swollen() -> Any:
    value: Any = ["x" * 100]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize("make", [lambda: deep(3000), lambda: deep(100_000), looped, swollen])
def test_no_shape_of_a_value_breaks_the_check(make: Any) -> None:
    """A cycle, any depth, and a small value that unfolds to an endless one are plainly refused."""
    client = Everything("e", anything=make())

    with pytest.raises((InvalidClientState, PayloadTooLarge)):
        client.to_dict()
    with pytest.raises((InvalidClientState, PayloadTooLarge)):
        Everything.from_dict({"client_id": "e", "state": "BASKET", "anything": make()})


def test_a_value_that_holds_itself_is_said_to() -> None:
    """A cycle is found where it closes, however often it would unfold."""
    value: list[Any] = [1]
    value += [value, value]
    with pytest.raises(InvalidClientState, match="holds itself") as caught:
        Everything("e", anything=value).to_dict()

    assert caught.value.path == "$.anything[1]"


def test_depth_within_the_limit_is_kept() -> None:
    """Ninety levels are stored and read back; the same list may stand in two places."""
    twice = [1]
    client = Everything("e", anything=[deep(90), twice, twice])

    assert through_kombu(client) == client


def test_the_largest_int_is_a_float_where_one_is_declared() -> None:
    """An int of 1023 bits is kept as it is in ``Any`` and int, and becomes a float in float."""
    largest = 2**1023 - 1
    same = through_kombu(Everything("e", anything=largest, count=-largest, share=largest))

    assert (same.anything, same.count, same.share) == (largest, -largest, float(largest))
    assert type(same.share) is float
    with pytest.raises(InvalidClientState, match="too large"):
        Everything("e", count=largest + 1).to_dict()


@pytest.mark.parametrize("number", [-0.0, 5e-324, 1e308, -1.7976931348623157e308, 2**63, -(2**200)])
def test_numbers_at_the_edge_come_back_exactly(number: float) -> None:
    """The least and largest floats, the negative zero and large ints are kept to the bit."""
    same = through_kombu(Everything("e", anything=number)).anything

    assert (same, math.copysign(1, same), type(same)) == (
        number,
        math.copysign(1, number),
        type(number),
    )


# --- documents ------------------------------------------------------------------------------------


def test_to_dict_is_plain_json() -> None:
    """A document has the id, the state, the version and the fields, as JSON's own types."""
    order = Order("o-17", items=["book"])
    order.enter(OrderStates.PAID)

    assert order.to_dict() == {
        "client_id": "o-17",
        "state": "PAID",
        "version": 1,
        "items": ["book"],
    }
    assert Order.from_dict(order.to_dict()) == order


def test_documents_share_nothing_with_the_client() -> None:
    """Neither the dict read nor the dict written is tied to the client, and neither is changed."""
    document = order_document(extra={"a": [1]})
    before = copy.deepcopy(document)
    order = Order.from_dict(document)
    order.items.append("pen")
    written = order.to_dict()
    written["extra"]["a"].append(2)
    document["items"].append("cup")

    loose = {"client_id": "e", "state": "BASKET", "anything": {"a": [1]}, "extra": [1]}
    client = Everything.from_dict(loose)
    client.anything["a"].append(2)
    loose["extra"].append(2)  # type: ignore[attr-defined]

    assert loose["anything"] == {"a": [1]}
    assert client.to_dict()["extra"] == [1]
    assert order.items == ["book", "pen"]
    assert order.to_dict()["extra"] == {"a": [1]}
    assert document["extra"] == before["extra"]


def test_unknown_fields_are_kept() -> None:
    """What another release of the same version wrote beside our fields is written back."""
    document = order_document(colour="red", nested={"__type__": "x", "__value__": 1, "n": [None]})

    order = Order.from_dict(document)

    assert order.to_dict() == document
    assert through_kombu(order).to_dict() == document
    assert order != Order.from_dict(order_document())


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (None, "$"),
        ([], "$"),
        ("{}", "$"),
        (b"{}", "$"),
        (5, "$"),
        (Order("o"), "$"),
        ({}, "$.client_id"),
        ({"state": "PAID"}, "$.client_id"),
        (order_document(client_id=None), "$.client_id"),
        (order_document(client_id=""), "$.client_id"),
        (order_document(client_id=5), "$.client_id"),
        (order_document(client_id="a\r\nb"), "$.client_id"),
        (order_document(client_id="\u202eb"), "$.client_id"),
        (order_document(client_id="x" * 201), "$.client_id"),
        (order_document(state=None), "$.state"),
        (order_document(state="paid"), "$.state"),
        (order_document(state="Paid"), "$.state"),
        (order_document(state="SUCCESS"), "$.state"),
        (order_document(state=["PAID"]), "$.state"),
        ({"client_id": "o-17", "version": 1}, "$.state"),
        (order_document(version=-1), "$.version"),
        (order_document(version=0), "$.version"),
        (order_document(version=True), "$.version"),
        (order_document(version=1.0), "$.version"),
        (order_document(version="3"), "$.version"),
        (order_document(version=None), "$.version"),
        (order_document(version=2**63), "$.version"),
        (order_document(version=2), "$.version"),
        (order_document(extra={1: 2}), "$.extra"),
        ({**order_document(), 5: 1}, "$"),
        (order_document(extra=math.nan), "$.extra"),
        (order_document(extra=-math.inf), "$.extra"),
        (order_document(extra=b""), "$.extra"),
        (order_document(extra={1}), "$.extra"),
        (order_document(extra=object), "$.extra"),
        (order_document(extra=Address("Elm")), "$.extra"),
        (order_document(extra=date(2024, 1, 1)), "$.extra"),
        (order_document(extra="\udfff"), "$.extra"),
        pytest.param(order_document(extra=[1, {"a": 10**5000}]), "$.extra[1].a", id="huge int"),
    ],
)
def test_from_dict_refuses_what_is_no_document(document: Any, path: str) -> None:
    """Whatever is not a client's document is refused with the path of the fault."""
    with pytest.raises(InvalidClientState) as caught:
        Order.from_dict(document)

    assert caught.value.path == path
    assert isinstance(caught.value, ValueError)


def test_errors_do_not_show_whole_documents() -> None:
    """An error shows the scalar that is wrong, never the fields around it."""
    document = {"state": "PAID", "password": "hunter2"}
    with pytest.raises(InvalidClientState) as caught:
        Order.from_dict(document)
    with pytest.raises(InvalidClientState) as nested:
        Order.from_dict(order_document(items={"password": "hunter2"}))

    assert "hunter2" not in str(caught.value) + str(nested.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(codec=None))
        | st.binary(max_size=3)
        | st.sampled_from([math.nan, Opaque(), {1}, Color.RED]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["client_id", "state", "version", "text", "anything", "homes", "pair", "prices", "other"]
    ),
)
def test_from_dict_raises_nothing_but_its_own_errors(value: Any, name: str) -> None:
    """Any value in any place is either a client or an InvalidInput, and what is read is written."""
    document = {"client_id": "e", "state": "BASKET", "version": 1, name: value}
    try:
        client = Everything.from_dict(document)
    except InvalidInput:
        return
    assert through_json(client) == client


@pytest.mark.parametrize("spare", [0, 1])
def test_the_size_of_a_document_is_capped_to_the_byte(spare: int) -> None:
    """Exactly 256 KiB of JSON is stored and read back; one byte more is not."""
    head = len(Order("o", items=[""]).to_json().encode())
    text = "ä" * 10 + "x" * (ROOM - head - 20)
    largest = Order("o", items=[text])
    assert len(largest.to_json().encode()) == ROOM
    assert through_json(largest) == largest
    assert Order.from_dict(largest.to_dict()) == largest

    largest.items[0] += "x"
    document = order_document(client_id="o", items=largest.items)
    for call in (
        largest.to_dict,
        largest.to_json,
        lambda: Order.from_dict(document),
        lambda: Order.from_json(json.dumps(document, ensure_ascii=False, separators=(",", ":"))),
    ):
        with pytest.raises(PayloadTooLarge):
            call()


# --- JSON text ------------------------------------------------------------------------------------


GOOD = '{"client_id":"o-17","state":"BASKET","version":1,"items":[]}'


@pytest.mark.parametrize("text", [GOOD, GOOD.encode(), f" {GOOD}\n"])
def test_from_json_reads_text_and_bytes(text: str | bytes) -> None:
    """JSON may come as str or as UTF-8 bytes, with blanks around it."""
    assert Order.from_json(text) == Order("o-17")


def test_from_json_parses_nothing_over_the_limit() -> None:
    """Text over 256 KiB is refused before it is read, even if most of it is blanks."""
    assert Order.from_json(GOOD.ljust(ROOM)) == Order("o-17")
    with pytest.raises(PayloadTooLarge):
        Order.from_json(GOOD.ljust(ROOM + 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '"{}"',
        f"{GOOD}x",
        f"{GOOD}{GOOD}",
        f"\ufeff{GOOD}",
        f"\ufeff{GOOD}".encode(),
        GOOD.encode("utf-16"),
        GOOD.encode("utf-32"),
        GOOD.encode()[:-1] + b',"a":"\xff"}',
        GOOD.replace("[]", "NaN"),
        GOOD.replace("[]", '[], "x": Infinity'),
        GOOD.replace("[]", '[], "x": 1e999'),
        GOOD.replace("[]", '[], "items": ["a"]'),
        GOOD.replace("[]", '[], "x": {"a": 1, "a": 1}'),
        GOOD.replace("[]", '[], "x": "\\ud800"'),
        GOOD.replace("[]", f'[], "x": {"9" * 5000}'),
        GOOD.replace("[]", f'[], "x": {"[" * 3000}{"]" * 3000}'),
        GOOD.replace("[]", f'[], "x": {"[" * 100_000}'),
        GOOD + "\ud800",
        None,
        5,
        bytearray(GOOD.encode()),
        {"client_id": "o-17"},
    ],
)
def test_from_json_is_strict(text: Any) -> None:
    """Two keys of one name, NaN, other encodings, a byte order mark and rest text are refused."""
    with pytest.raises(InvalidClientState):
        Order.from_json(text)


# --- versions -------------------------------------------------------------------------------------


class Account(ClientState, states=OrderStates, version=3):
    owner: str
    total: Decimal = Decimal(0)
    calls: ClassVar[list[int]] = []

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        cls.calls.append(version)
        if version < 2:
            data["owner"] = data.pop("name")
        if version < 3 and data["state"] == "OPEN":
            data["state"] = "BASKET"
        return data


def test_an_older_document_is_upgraded_once() -> None:
    """``upgrade`` is called once, with the version stored; it may rename fields and states."""
    Account.calls.clear()
    document = {"client_id": "a", "state": "OPEN", "version": 1, "name": "Ann", "kept": 1}

    account = Account.from_dict(document)

    assert Account.calls == [1]
    assert (account.owner, account.state) == ("Ann", "BASKET")
    assert account.to_dict()["version"] == 3
    assert account.to_dict()["kept"] == 1
    assert document["name"] == "Ann"


def test_a_document_of_this_version_is_not_upgraded() -> None:
    """A document of the class's own version goes past upgrade; one without a version is of 1."""
    Account.calls.clear()
    Account.from_dict({"client_id": "a", "state": "PAID", "version": 3, "owner": "Ann"})
    assert Account.calls == []

    Account.from_dict({"client_id": "a", "state": "PAID", "name": "Ann"})
    assert Account.calls == [1]


def test_without_an_upgrade_new_fields_get_their_defaults() -> None:
    """A class that only gained fields with defaults needs no upgrade."""

    class Newer(ClientState, states=OrderStates, version=2):
        items: list[str] = []
        note: str = "none"

    assert Newer.from_dict(order_document()).note == "none"


def test_a_newer_document_is_refused() -> None:
    """A document of a newer release is not read as if it were ours."""
    with pytest.raises(InvalidClientState, match="newer release") as caught:
        Account.from_dict({"client_id": "a", "state": "PAID", "version": 4, "owner": "Ann"})

    assert caught.value.path == "$.version"


def boom(data: dict[str, Any]) -> Any:
    return data["nothing"]


@pytest.mark.parametrize(
    ("upgrade", "path"),
    [
        (boom, "$"),
        (lambda _: None, "$"),
        (lambda _: [1], "$"),
        (lambda _: {}, "$.client_id"),
        (lambda data: {**data, "client_id": "b"}, "$.client_id"),
        (lambda data: {**data, "state": "OPEN"}, "$.state"),
        (lambda data: {**data, "items": 5}, "$.items"),
        (lambda data: {**data, "x": {1}}, "$.x"),
    ],
)
def test_a_fault_in_upgrade_names_upgrade(upgrade: Any, path: str) -> None:
    """Whatever upgrade raises or returns wrongly is an InvalidClientState that speaks of it."""

    class Faulty(Order, version=2):
        @classmethod
        def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
            assert version == 1
            return upgrade(data)  # type: ignore[no-any-return]

    with pytest.raises(InvalidClientState, match=r"Faulty\.upgrade\(data, 1\)") as caught:
        Faulty.from_dict(order_document())
    assert caught.value.path == path


# --- kombu ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "datetime", "__value__": "2024-01-01"},
        {"__type__": "nothing we know", "__value__": [{"__type__": "bytes", "__value__": "a"}]},
        {"__type__": 1, "__value__": 2, "__plain__": True},
        {"__type__": 1, "__value__": 2, "__plain__": False},
        {"__type__": 1, "__value__": 2, "__plain__": [True]},
        {"__type__": 1, "__value__": 2, "__plain__": {"__type__": 1, "__value__": 2}},
        {"__type__": 1, "__value__": 2, "__plain__": True, "more": 1},
        {"__type__": 1},
    ],
)
def test_a_users_dict_is_data_to_kombu(value: Any) -> None:
    """A dict that looks like kombu's typed envelope, or like our escape of it, stays what it is."""
    client = Everything("e", anything={"deep": [value]})

    assert through_kombu(client) == client
    assert through_json(client) == client
    assert Everything.from_dict(client.to_dict()) == client
    assert kombu_json.loads(kombu_json.dumps(client.to_dict())) == client.to_dict()


keys = st.sampled_from(["__type__", "__value__", "__plain__", "a"]) | st.text(max_size=3)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_any_json_value_comes_back(value: Any) -> None:
    """Every JSON value survives to_dict, JSON text and kombu, exactly."""
    client = Everything("e", anything=value)

    for same in (
        Everything.from_dict(client.to_dict()),
        through_json(client),
        through_kombu(client),
    ):
        assert same == client
        assert json.dumps(same.anything) == json.dumps(value)


offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
clients = st.builds(
    Everything,
    st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=30),
    text=st.text(),
    count=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(st.text()),
    pair=st.tuples(st.integers(), st.text()),
    tags=st.sets(st.text()),
    prices=st.dictionaries(keys, st.decimals(allow_nan=False, allow_infinity=False)),
    homes=st.lists(st.builds(Address, st.text(), st.integers(), st.dates() | st.none())),
    color=st.sampled_from(Color),
    size=st.sampled_from(Size),
    at=st.datetimes(timezones=st.none() | offsets),
    hour=st.times(timezones=st.none() | offsets),
    took=st.timedeltas(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    key=st.uuids(),
    raw=st.binary(),
)


@given(clients)
def test_any_client_comes_back(client: Everything) -> None:
    """Every client that its types allow survives to_dict, JSON text and kombu."""
    assert Everything.from_dict(client.to_dict()) == client
    assert through_json(client) == client
    assert through_kombu(client) == client


def test_a_client_is_a_plain_dict_on_the_wire() -> None:
    """No type is registered with kombu: a receiver without this library reads a dict."""
    assert kombu_json.loads(kombu_json.dumps([Order("o", items=["a"])])) == [
        {"client_id": "o", "state": "BASKET", "version": 1, "items": ["a"]}
    ]


def test_other_serializers_take_the_client_or_refuse_loudly() -> None:
    """As pickle the client itself is sent; yaml refuses to send it: nothing is lost in silence."""
    order = Order("o", items=["a"])
    _, _, sent = kombu_dumps(order, serializer="pickle")

    assert pickle.loads(sent) == order
    with pytest.raises(EncodeError):
        kombu_dumps(order, serializer="yaml")


# --- where it stands ------------------------------------------------------------------------------


def test_a_client_starts_in_the_first_state() -> None:
    """A new client stands in its flow's initial state and knows what may come next."""
    order = Order("o")

    assert (order.state, order.states) == ("BASKET", OrderStates)
    assert order.available_states == ("BASKET", "PAID", "SHIPPED")
    assert order.next_states == ("PAID", "SHIPPED")
    assert order.flow() is Flow.of(OrderStates)
    assert order.moves == ()


def test_enter_moves_by_the_flow_and_remembers() -> None:
    """A move is by member or stored name; moves are remembered until stored, not serialised."""
    order = Order("o", items=["a"])
    order.enter(OrderStates.PAID, reason="card")
    order.enter("SHIPPED")

    assert order.state == "SHIPPED"
    assert order.moves == (Move("BASKET", "PAID", "card"), Move("PAID", "SHIPPED"))
    assert through_json(order).moves == ()
    assert "moves" not in order.to_dict()


def test_an_illegal_move_names_the_client_and_changes_nothing() -> None:
    """What the flow refuses is an IllegalTransition with the kind, the id and the allowed states."""
    order = Order("o-17")
    order.enter("PAID")
    with pytest.raises(IllegalTransition) as caught:
        order.enter("BASKET")

    error = caught.value
    assert (error.task, error.id, error.allowed) == ("Order", "o-17", ("SHIPPED",))
    assert (order.state, len(order.moves)) == ("PAID", 1)


def test_a_guard_sees_the_client() -> None:
    """A transition's guard is asked with the client; its sentence is the reason."""
    order = Order("o")
    order.enter("PAID")
    with pytest.raises(IllegalTransition, match="nothing to ship"):
        order.enter("SHIPPED")
    order.items.append("book")
    order.enter("SHIPPED")

    assert order.state == "SHIPPED"


@pytest.mark.parametrize("state", ["paid", "", None, 5, ClientStates.SUCCESS, Color.RED])
def test_a_state_of_somebody_else_is_refused(state: Any) -> None:
    """Only members and stored names of the client's own states may be entered."""
    order = Order("o")
    with pytest.raises(InvalidState):
        order.enter(state)

    assert (order.state, order.moves) == ("BASKET", ())


def test_the_state_cannot_be_set() -> None:
    """``state`` is read; ``enter`` moves."""
    with pytest.raises(AttributeError):
        Order("o").state = "PAID"  # type: ignore[misc]


def test_a_long_reason_is_cut() -> None:
    """A reason takes at most 1024 bytes."""
    order = Order("o")
    order.enter("PAID", "ä" * 5000)

    assert len(order.moves[0].reason.encode()) <= Limits().message_bytes


# --- the default machine --------------------------------------------------------------------------


def test_client_state_is_usable_as_it_is() -> None:
    """It has four states, stands in READY, and keeps the actions taken with their results."""
    client = ClientState("client-7")
    with client.action("first_action") as action:
        assert client.state == "IN_PROGRESS"
        assert client.actions == [Action("first_action", "IN_PROGRESS")]
        action.result = {"n": (1, 2)}

    assert client.available_states == ("READY", "IN_PROGRESS", "SUCCESS", "FAILURE")
    assert client.state == "READY"
    assert client.actions == [Action("first_action", "SUCCESS", {"n": [1, 2]})]
    assert [move.to_state for move in client.moves] == ["IN_PROGRESS", "SUCCESS", "READY"]
    assert through_kombu(client) == client


def test_a_failed_action_is_kept_and_its_exception_goes_on() -> None:
    """FAILURE with the error's type and message, then READY; the exception propagates."""
    client = ClientState("c")
    with pytest.raises(KeyError), client.action("a"):
        raise KeyError("book")

    assert client.actions == [Action("a", "FAILURE", None, "KeyError: 'book'")]
    assert [move.to_state for move in client.moves] == ["IN_PROGRESS", "FAILURE", "READY"]


def test_an_action_ended_from_outside_has_failed() -> None:
    """What is no Exception, a worker's shutdown say, ends the action all the same."""
    client = ClientState("c")
    with pytest.raises(SystemExit), client.action("a"):
        raise SystemExit

    assert (client.state, client.actions[0].state) == ("READY", "FAILURE")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("exc", [Mute(), ValueError("\ud800" * 5000)])
def test_any_error_can_be_kept(exc: Exception) -> None:
    """An error that cannot be printed, or is long, is kept as well as it can be."""
    client = ClientState("c")
    with pytest.raises(type(exc)), client.action("a"):
        raise exc

    assert through_json(client).actions[0].error.startswith(type(exc).__name__)


@pytest.mark.parametrize("result", [{1, 2}, math.nan, Opaque(), {1: 2}, date(2024, 1, 1)])
def test_a_result_that_is_no_json_fails_the_action(result: Any) -> None:
    """The result is checked as the block ends: InvalidClientState, and the action has failed."""
    client = ClientState("c")
    with pytest.raises(InvalidClientState) as caught, client.action("a") as action:
        action.result = result

    assert caught.value.path.startswith("$.actions[0].result")
    assert (client.state, client.actions[0].state) == ("READY", "FAILURE")
    assert through_json(client) == client


def test_a_result_is_kept_as_it_was_at_the_end() -> None:
    """A list that is changed after the action does not change the action."""
    client, result = ClientState("c"), [1]
    with client.action("a") as action:
        action.result = result
    result.append(2)

    assert client.actions[0].result == [1]


def test_a_busy_client_takes_no_second_action() -> None:
    """An action inside an action is an IllegalTransition, and the first one goes on."""
    client = ClientState("c")
    with client.action("outer") as outer:
        with pytest.raises(IllegalTransition), client.action("inner"):
            pytest.fail("the inner action began")
        assert (client.state, len(client.actions)) == ("IN_PROGRESS", 1)
        outer.result = 1

    assert client.actions == [Action("outer", "SUCCESS", 1)]


@pytest.mark.parametrize("name", ["", None, 5])
def test_an_action_has_a_name(name: Any) -> None:
    """An action without a name is refused, and nothing is changed."""
    client = ClientState("c")
    with pytest.raises(InvalidClientState), client.action(name):
        pytest.fail("the action began")

    assert (client.state, client.actions) == ("READY", [])


def test_other_states_take_no_actions() -> None:
    """A class with states of its own has no actions in its documents, and says so."""
    order = Order("o")
    with pytest.raises(InvalidState, match="takes no actions"), order.action("a"):
        pytest.fail("the action began")

    assert "actions" not in order.to_dict()
    assert order.moves == ()


def test_a_subclass_of_the_default_machine_keeps_actions() -> None:
    """Fields may be added, and actions are kept; so they are where own states include the four."""

    class Mine(ClientState):
        note: str = ""

    class More(States):
        READY = "Ready"
        IN_PROGRESS = "Busy"
        SUCCESS = "Good"
        FAILURE = "Bad"
        GONE = "Gone"

        __flow__ = {
            "READY": "IN_PROGRESS GONE",
            "IN_PROGRESS": "SUCCESS FAILURE",
            "SUCCESS": "READY",
            "FAILURE": "READY",
        }

    class Mortal(Mine, states=More):
        pass

    for cls in (Mine, Mortal):
        client = cls("c", note="n")
        with client.action("a") as action:
            action.result = 1
        assert through_json(client) == client
        assert client.to_dict()["actions"][0]["result"] == 1


def test_actions_read_are_checked() -> None:
    """An action of a document is as typed as any field."""
    document = ClientState("c").to_dict()
    document["actions"] = [{"name": "a", "state": "DONE"}]
    with pytest.raises(InvalidClientState) as caught:
        ClientState.from_dict(document)

    assert caught.value.path == "$.actions[0].state"


# --- the classroom layout -------------------------------------------------------------------------

STATES = ["READY", "IN_PROGRESS", "SUCCESS", "FAILURE"]


@pytest.mark.parametrize(
    ("state", "taken", "result", "actions"),
    [
        ("READY", None, None, []),
        ("READY", [], [], []),
        ("READY", [], {}, []),
        ("READY", "a", 5, [Action("a", "SUCCESS", 5)]),
        ("READY", "a", [1, 2], [Action("a", "SUCCESS", [1, 2])]),
        ("READY", "a", {"x": 1}, [Action("a", "SUCCESS", {"x": 1})]),
        ("READY", "a", {"a": 1}, [Action("a", "SUCCESS", 1)]),
        ("SUCCESS", ["a", "b"], [1, 2], [Action("a", "SUCCESS", 1), Action("b", "SUCCESS", 2)]),
        ("FAILURE", ["a", "b"], [1], [Action("a", "SUCCESS", 1), Action("b", "FAILURE")]),
        ("READY", ["a", "b"], {"b": 2}, [Action("a", "SUCCESS"), Action("b", "SUCCESS", 2)]),
        ("READY", ["a", "b"], 7, [Action("a", "SUCCESS"), Action("b", "SUCCESS", 7)]),
        ("IN_PROGRESS", ["a", "b"], ["x"], [Action("a", "SUCCESS", "x"), Action("b")]),
    ],
)
def test_the_classroom_layout_is_read(
    state: str, taken: Any, result: Any, actions: list[Action]
) -> None:
    """Names and results of actions become actions, however they were written down."""
    document = {
        "client_id": "c",
        "available_states": STATES,
        "curr_state": state,
        "action_taken": taken,
        "action_result": result,
    }
    before = copy.deepcopy(document)

    client = ClientState.from_json(json.dumps(document))

    assert (client.state, client.actions) == (state, actions)
    assert ClientState.from_dict(document) == client
    assert set(client.to_dict()) == {"client_id", "state", "version", "actions"}
    assert document == before


def test_the_classroom_layout_may_lack_its_actions() -> None:
    """Only the id and the state are needed, and another class's states and fields are its own."""
    assert ClientState.from_dict({"client_id": "c", "curr_state": "READY"}) == ClientState("c")
    order = Order.from_dict({"client_id": "o", "curr_state": "PAID", "items": ["a"]})
    assert (order.state, order.items) == ("PAID", ["a"])


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"curr_state": "BUSY"}, "$.state"),
        ({"curr_state": None}, "$.state"),
        ({"client_id": None}, "$.client_id"),
        ({"available_states": ["READY", "BUSY"]}, "$.available_states"),
        ({"available_states": "READY"}, "$.available_states"),
        ({"available_states": [["READY"]]}, "$.available_states"),
        ({"action_taken": 5}, "$.action_taken"),
        ({"action_taken": ["a", None]}, "$.action_taken"),
        ({"action_taken": ["a"], "action_result": [1, 2]}, "$.action_result"),
        ({"action_taken": [], "action_result": 5}, "$.action_result"),
        ({"action_taken": None, "action_result": {"a": 1}}, "$.action_result"),
    ],
)
def test_a_faulty_classroom_layout_is_refused(changes: dict[str, Any], path: str) -> None:
    """Unknown states, and results without actions, are refused with their path."""
    document = {"client_id": "c", "curr_state": "READY", **changes}
    with pytest.raises(InvalidClientState) as caught:
        ClientState.from_dict(document)

    assert caught.value.path == path


def test_classroom_actions_need_the_states_for_them() -> None:
    """A class that takes no actions does not drop those of a classroom document in silence."""
    with pytest.raises(InvalidClientState, match="actions"):
        Order.from_dict({"client_id": "o", "curr_state": "PAID", "action_taken": "a"})


# --- as a value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client_id", ["", None, 5, b"a", "a\nb", "x" * 201, "\x1b[31m"])
def test_an_id_that_names_no_client_is_refused(client_id: Any) -> None:
    """An id is 1 to 200 bytes of printable text."""
    with pytest.raises(InvalidId):
        Order(client_id)


def test_clients_are_equal_by_class_and_content() -> None:
    """Same class, id, state and fields; and a client is no key of a dict, for it changes."""
    order, same = Order("o", items=["a"]), Order("o", items=["a"])

    class Other(Order):
        pass

    assert order == same
    assert order != Other("o", items=["a"])
    assert order != Order("p", items=["a"])
    assert order != "o"
    same.enter("PAID")
    assert order != same
    with pytest.raises(TypeError):
        hash(order)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda order: pickle.loads(pickle.dumps(order))]
)
def test_clients_can_be_copied_and_pickled(again: Any) -> None:
    """A copy has the id, the state, the fields, the moves and the unknown fields."""
    order = Order.from_dict(order_document(extra=1))
    order.enter("PAID")

    other = again(order)

    assert (other, other.moves, other.to_dict()) == (order, order.moves, order.to_dict())


def test_the_repr_shows_no_field() -> None:
    """What stands in logs and in Celery's headers is class, id and state, on one line."""
    order = Order("o-17", items=["secret"])
    order.client_id = "a\n\x1b[31m" + "x" * 500

    assert repr(Order("o-17", items=["secret"])) == "Order(client_id='o-17', state='BASKET')"
    assert repr(order).isprintable()
    assert len(repr(order)) < 200


def test_a_second_dataclass_decorator_does_not_undo_the_repr() -> None:
    """Whoever decorates the class by mistake does not thereby print its fields."""

    @dataclass
    class Twice(ClientState):
        password: str = ""

    class Own(Order):
        def __repr__(self) -> str:
            return "mine"

    assert repr(Twice("t", password="hunter2")) == "Twice(client_id='t', state='READY')"
    assert repr(Own("o")) == "mine"


def test_a_client_is_no_dict() -> None:
    """A client must be no dict or text: kombu calls the hook only of what json cannot write."""
    assert not isinstance(Order("o"), (dict, str, list, tuple))


def test_a_post_init_of_ones_own_is_called_and_may_refuse() -> None:
    """``__post_init__`` works as in a dataclass; its ValueError refuses the document."""

    class Even(ClientState, states=OrderStates):
        number: int = 0
        half: int = field(default=0, init=False)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.number % 2:
                raise ValueError("odd")
            self.half = self.number // 2

    assert Even("e", number=4).half == 2
    with pytest.raises(InvalidClientState, match="odd"):
        Even.from_dict({"client_id": "e", "state": "BASKET", "number": 3})
