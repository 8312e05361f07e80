"""Hydration: annotated parameters and results are clients in the task, plain dicts on the wire."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Dict, List, Optional, Tuple, Union  # noqa: UP035

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from celery_statekit.client import ClientState
from celery_statekit.errors import InvalidClientState, InvalidDefinition, PayloadTooLarge
from celery_statekit.hydration import Hydration
from celery_statekit.states import States


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"


class Order(ClientState, states=OrderStates):
    items: list[str] = []
    password: str = ""


class Gift(Order):
    to: str = ""


class Customer(ClientState):
    name: str = ""


BOOK = Order("o-17", items=["book"], password="hunter2")
WIRE = BOOK.to_dict()
SHOWN = "Order(client_id='o-17', state='BASKET')"


def pay(order: Order, amount: int = 1, *, note: str = "") -> Order:
    return order


def plain(path: str, *more: int, key: dict[str, Any] | None = None) -> dict[str, int]:
    return {}


def define(source: str, **names: Any) -> Any:
    """The function ``f`` of ``source``, whose annotations are real objects, not text."""
    space: dict[str, Any] = {"__name__": __name__, **names}
    exec(compile(source, "made", "exec", dont_inherit=True), space)
    return space["f"]


# --- arguments ------------------------------------------------------------------------------------


def test_a_dict_becomes_the_annotated_client() -> None:
    """By place or by name, an annotated parameter gets a client; the others are as they were."""
    hydration = Hydration.of(pay)
    other = object()

    args, kwargs = hydration.arguments((WIRE, other), {"note": other})
    assert args == (BOOK, other)
    assert args[1] is other
    assert kwargs == {"note": other}

    args, kwargs = hydration.arguments((), {"order": WIRE, "unknown": WIRE})
    assert (args, kwargs) == ((), {"order": BOOK, "unknown": WIRE})


def test_what_was_given_is_never_changed() -> None:
    """The lists, dicts and clients of the request stay as they are, whatever the task does."""
    live = Order("o-1", items=["a"])
    args, kwargs = [{**WIRE}, live], {"order": {**WIRE}}

    new_args, new_kwargs = Hydration.of(define_two()).arguments(args, kwargs)
    for client in (*new_args, *new_kwargs.values()):
        client.items.append("changed")
        client.enter("PAID")

    assert args == [WIRE, Order("o-1", items=["a"])]
    assert kwargs == {"order": WIRE}
    assert new_args[1] is not live


def define_two() -> Callable[..., None]:
    def two(first: Order, second: Order, *, order: Order) -> None: ...

    return two


def test_nothing_to_do_costs_nothing() -> None:
    """A task without clients among its parameters gets the very objects it was given."""
    hydration = Hydration.of(plain)
    args, kwargs = [WIRE], {"key": WIRE}

    assert hydration.idle
    assert hydration.arguments(args, kwargs)[0] is args
    assert hydration.arguments(args, kwargs)[1] is kwargs
    assert hydration.redacted(args, kwargs) is None
    assert not Hydration.of(pay).idle


def test_only_the_result_may_be_a_client() -> None:
    """A task that returns a client but takes none is idle, and its result is still hydrated."""

    def load(client_id: str) -> Order: ...

    hydration = Hydration.of(load)

    assert hydration.idle
    assert hydration.result(WIRE) == BOOK


SHAPES: list[tuple[Any, Any, Any]] = [
    (Order, WIRE, BOOK),
    (Optional[Order], WIRE, BOOK),  # noqa: UP045
    (Optional[Order], None, None),  # noqa: UP045
    (Order | None, WIRE, BOOK),
    (Union[Order, str], WIRE, BOOK),  # noqa: UP007
    (Order | str, "o-17", "o-17"),
    (Order | int | None, None, None),
    (Annotated[Order, "the order"], WIRE, BOOK),
    (Annotated[Order | None, "x"], None, None),
    (list[Order], [WIRE, WIRE], [BOOK, BOOK]),
    (List[Order], [WIRE], [BOOK]),  # noqa: UP006
    (Sequence[Order], [WIRE], [BOOK]),
    (list[Order], [], []),
    (list[Order | None], [WIRE, None], [BOOK, None]),
    (list[Order] | None, [WIRE], [BOOK]),
    (tuple[Order, ...], [WIRE, WIRE], (BOOK, BOOK)),
    (Tuple[Order, ...], [WIRE], (BOOK,)),  # noqa: UP006
    (tuple[Order, int], [WIRE, 5], (BOOK, 5)),
    (dict[str, Order], {"a": WIRE}, {"a": BOOK}),
    (Dict[str, Order], {"a": WIRE}, {"a": BOOK}),  # noqa: UP006
    (Mapping[str, Order], {"a": WIRE}, {"a": BOOK}),
    (dict[str, list[Order]], {"a": [WIRE]}, {"a": [BOOK]}),
    (ClientState, ClientState("c").to_dict(), ClientState("c")),
]


@pytest.mark.parametrize(("annotation", "sent", "got"), SHAPES)
@pytest.mark.parametrize("textual", [False, True])
def test_clients_inside_containers(annotation: Any, sent: Any, got: Any, *, textual: bool) -> None:
    """Optional, unions, Annotated, lists, tuples and dicts of clients are read, and so are results."""
    written = "'annotation'" if textual else "annotation"
    f = define(f"def f(x: {written}) -> {written}: ...", annotation=annotation)

    args, kwargs = Hydration.of(f).arguments((sent,), {"x": sent})

    assert (args, kwargs) == ((got,), {"x": got})
    assert type(args[0]) is type(got)
    assert Hydration.of(f).result(sent) == got


def test_star_parameters_are_read() -> None:
    """Annotated ``*args`` and ``**kwargs`` hold clients, whatever is named before them."""
    source = "def f(a, /, b: Order, *rest: Order, plain=None, **others: Order): ..."
    hydration = Hydration.of(define(source, Order=Order))

    args, kwargs = hydration.arguments((1, WIRE, WIRE, WIRE), {"c": WIRE, "a": WIRE, "plain": 5})
    assert args == (1, BOOK, BOOK, BOOK)
    assert kwargs == {"c": BOOK, "a": BOOK, "plain": 5}

    with pytest.raises(InvalidClientState) as caught:
        hydration.arguments((1, WIRE, WIRE, 5), {})
    assert caught.value.path == "arguments.rest[1]"


def test_a_client_that_is_one_already_is_copied() -> None:
    """An eager call hands over the live object: the task gets a copy, of its own class."""
    gift = Gift("g", items=["a"], to="Ann")
    gift.enter("PAID")

    (got,), _ = Hydration.of(pay).arguments((gift,), {})

    assert (got, type(got)) == (gift, Gift)
    assert got is not gift
    assert got.items is not gift.items


@pytest.mark.parametrize("args", [(), (WIRE, 1, 2, 3, 4)])
def test_a_wrong_number_of_arguments_is_left_to_python(args: tuple[Any, ...]) -> None:
    """Hydration does not complain of arguments: calling the function does, in Python's words."""
    args, kwargs = Hydration.of(pay).arguments(args, {"nobody": 1})

    with pytest.raises(TypeError, match=r"pay\(\)"):
        pay(*args, **kwargs)


@pytest.mark.parametrize(
    ("annotation", "sent", "path"),
    [
        (Order, {**WIRE, "items": ["a", 5]}, "arguments.x.items[1]"),
        (Order, {**WIRE, "client_id": ""}, "arguments.x.client_id"),
        (Order, {}, "arguments.x.client_id"),
        (Order, None, "arguments.x"),
        (Order, "o-17", "arguments.x"),
        (Order, [WIRE], "arguments.x"),
        (Order, Customer("c"), "arguments.x"),
        (Gift, BOOK, "arguments.x"),
        (Order | None, "o-17", "arguments.x"),
        (Order | str, [WIRE], "arguments.x"),
        (Order | str, {**WIRE, "state": 5}, "arguments.x.state"),
        (list[Order], WIRE, "arguments.x"),
        (list[Order], None, "arguments.x"),
        (list[Order], [WIRE, {**WIRE, "items": 5}], "arguments.x[1].items"),
        (tuple[Order, int], [WIRE], "arguments.x"),
        (tuple[Order, int], ["o", 5], "arguments.x[0]"),
        (dict[str, Order], [WIRE], "arguments.x"),
        (dict[str, Order], {"a b": 5}, "arguments.x['a b']"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_path(annotation: Any, sent: Any, path: str) -> None:
    """What is not the declared client is an InvalidClientState that says which argument."""
    f = define("def f(x: annotation): ...", annotation=annotation)
    with pytest.raises(InvalidClientState) as caught:
        Hydration.of(f).arguments((), {"x": sent})

    assert caught.value.path == path


def test_too_large_a_client_is_refused_with_its_path() -> None:
    """The size of a client is refused as what it is."""
    with pytest.raises(PayloadTooLarge) as caught:
        Hydration.of(pay).arguments(({**WIRE, "items": ["x" * 300_000]},), {})

    assert caught.value.path.startswith("arguments.order")


# --- the function ---------------------------------------------------------------------------------


def wrapped(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return inner


class Paying:
    def run(self, order: Order) -> Order:
        return order


@pytest.mark.parametrize(
    "hydration",
    [
        Hydration.of(Paying.run, bound=True),
        Hydration.of(Paying().run),
        Hydration.of(Paying().run, bound=True),
        Hydration.of(wrapped(Paying.run), bound=True),
        Hydration.of(wrapped(wrapped(Paying().run))),
        Hydration.of(wrapped(pay)),
        Hydration.of(staticmethod(pay).__func__),
    ],
)
def test_the_task_itself_is_no_argument(hydration: Hydration) -> None:
    """Methods, functions of methods and what wraps them all take the client first."""
    assert hydration.arguments((WIRE,), {}) == ((BOOK,), {})
    assert hydration.result(WIRE) == BOOK


@pytest.mark.parametrize("options", [{}, {"autoretry_for": (ValueError,)}])
@pytest.mark.parametrize("bind", [False, True])
def test_celerys_tasks_are_understood(*, bind: bool, options: dict[str, Any]) -> None:
    """The ``run`` of a real task: bound or not, with Celery's autoretry around it or not."""
    app = Celery("shop", set_as_current=False)

    def bound_pay(self: Any, order: Order) -> Order:
        return order

    task = app.task(bind=bind, name="pay", **options)(bound_pay if bind else pay)

    assert Hydration.of(task.run).arguments((WIRE,), {}) == ((BOOK,), {})


def test_one_hydration_per_function() -> None:
    """The annotations of a function are read once."""
    assert Hydration.of(pay) is Hydration.of(pay)
    assert Hydration.of(Paying.run) is not Hydration.of(Paying.run, bound=True)


def test_a_class_that_is_defined_later_is_found() -> None:
    """Annotations are read at first use, not when the task is made."""
    space: dict[str, Any] = {"__name__": __name__}
    exec("def f(order: 'Later'): ...", space)
    hydration = Hydration.of(space["f"])
    space["Later"] = Order

    assert hydration.arguments((WIRE,), {}) == ((BOOK,), {})


def test_an_unknown_name_costs_only_its_own_parameter(caplog: pytest.LogCaptureFixture) -> None:
    """An annotation that cannot be resolved is left out with one warning; the others work."""
    f = define("def f(a: 'Nowhere', order: Order, b: 'x.y[0') -> 'Gone': ...", Order=Order)
    hydration = Hydration.of(f)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert hydration.arguments((WIRE, WIRE, 5), {}) == ((WIRE, BOOK, 5), {})
            assert hydration.result(WIRE) is WIRE

    assert [record.name for record in caplog.records] == ["celery_statekit.hydration"] * 3
    assert all(word in caplog.text for word in ("Nowhere", "annotation of b", "Gone"))


def test_a_wrapper_of_another_module_hides_no_name() -> None:
    """The names in an annotation are those of the module of the function that was wrapped."""
    f = define("def f(order: 'Purchase', other: 'Nowhere'): ...", Purchase=Order)

    assert Hydration.of(wrapped(f)).arguments((WIRE,), {}) == ((BOOK,), {})


@pytest.mark.parametrize("text", ["Order", "models.Order", "list[Order]", "Order | None", "Gift"])
def test_a_client_class_that_is_out_of_reach_is_an_error(text: str) -> None:
    """An unresolvable annotation that names a client class is not passed over: import the class."""
    f = define(f"def f(order: {text!r}): ...")
    for use in (
        lambda: Hydration.of(f).idle,
        lambda: Hydration.of(f).arguments((WIRE,), {}),
        lambda: Hydration.of(f).result(WIRE),
    ):
        with pytest.raises(InvalidDefinition, match="top level of the module") as caught:
            use()
        assert caught.value.path == "order"


def test_a_client_class_inside_a_function_is_out_of_reach_of_text() -> None:
    """A function-local class works as a real annotation, and is an error as text."""

    class Hidden(ClientState):
        pass

    def textual(client: Hidden) -> None: ...

    real = define("def f(client: Hidden): ...", Hidden=Hidden)
    client = Hidden("h")

    assert Hydration.of(real).arguments((client.to_dict(),), {}) == ((client,), {})
    with pytest.raises(InvalidDefinition):
        Hydration.of(textual).arguments((client.to_dict(),), {})


@pytest.mark.parametrize(
    "annotation",
    [Order | Customer, list[Order | Customer], type[Order], set[Order], frozenset[Order]],
)
def test_an_annotation_that_cannot_be_obeyed_is_said(
    annotation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Two clients in one union, a set of them and the like are left as dicts, with a warning."""
    f = define("def f(x: annotation): ...", annotation=annotation)
    with caplog.at_level(logging.WARNING):
        assert Hydration.of(f).arguments((WIRE,), {}) == ((WIRE,), {})
        assert Hydration.of(f).idle

    assert len(caplog.records) == 1
    assert "x is not made a client" in caplog.text


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "o-17", 5, [1], ValueError("no"), BOOK])
def test_a_result_that_is_no_dict_stays(value: Any) -> None:
    """What is no dict where a client is declared is returned as it is, a live client too."""
    assert Hydration.of(pay).result(value) is value


def test_a_result_that_is_no_client_is_refused() -> None:
    """A dict that is not the declared client is an InvalidClientState at ``result``."""
    with pytest.raises(InvalidClientState) as caught:
        Hydration.of(pay).result({**WIRE, "items": [None]})

    assert caught.value.path == "result.items[0]"


def test_a_result_without_annotation_stays() -> None:
    """Without a return annotation, or with another one, nothing is done."""
    assert Hydration.of(lambda: None).result(WIRE) is WIRE
    assert Hydration.of(plain).result(WIRE) is WIRE


# --- what is shown --------------------------------------------------------------------------------


def test_clients_are_shown_without_their_fields() -> None:
    """Live or already decoded, a client is shown as class, id and state; the rest by saferepr."""
    hydration = Hydration.of(pay)

    for order in (BOOK, WIRE, kombu_json.loads(kombu_json.dumps(BOOK))):
        shown = hydration.redacted((order, 5), {"note": "x", "order": order})
        assert shown == (f"({SHOWN}, 5)", f"{{'note': 'x', 'order': {SHOWN}}}")


@pytest.mark.parametrize(
    ("annotation", "value", "shown"),
    [
        (Order, {"password": "hunter2"}, "<Order>"),
        (Order, {**WIRE, "client_id": 5}, "<Order>"),
        (Order, "hunter2", "<Order>"),
        (Order, ["hunter2"], "<Order>"),
        (Order, None, "None"),
        (Order, {"client_id": "o", "curr_state": "PAID"}, "Order(client_id='o', state='PAID')"),
        (Order | None, None, "None"),
        (Order | None, WIRE, SHOWN),
        (Order | str, "o-17", "'o-17'"),
        (Order | str, WIRE, SHOWN),
        (list[Order], [WIRE, None, 5], f"[{SHOWN}, None, <Order>]"),
        (list[Order], {"password": "hunter2"}, "<Order>"),
        (tuple[Order, ...], (WIRE,), f"({SHOWN},)"),
        (tuple[Order, int], (WIRE, 5), f"({SHOWN}, 5)"),
        (tuple[Order, int], {"password": "hunter2"}, "<dict>"),
        (dict[str, Order], {"a": WIRE}, f"{{'a': {SHOWN}}}"),
        (dict[str, Order], ["hunter2"], "<Order>"),
    ],
)
def test_whatever_stands_for_a_client_is_hidden(annotation: Any, value: Any, shown: str) -> None:
    """What cannot be read as the declared client is shown as its class alone."""
    f = define("def f(x: annotation): ...", annotation=annotation)

    assert Hydration.of(f).redacted((), {"x": value}) == ("()", f"{{'x': {shown}}}")


def test_shown_arguments_are_cut_and_on_one_line() -> None:
    """As Celery's own: at most about 1024 characters; and no id can forge a line of a log."""
    f = define("def f(*orders: Order): ...", Order=Order)
    forged = {**WIRE, "client_id": "a\n2024 INFO paid\x1b[0m"}

    args, _ = Hydration.of(f).redacted((forged,) * 100, {}) or ("", "")

    assert args.isprintable()
    assert len(args) < 1200
    assert args.endswith(", ...)")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.just(WIRE),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["client_id", "state", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from([annotation for annotation, _, _ in SHAPES]),
)
def test_showing_never_fails_and_reading_fails_only_as_declared(
    value: Any, annotation: Any
) -> None:
    """Any JSON value can be shown without a secret, and is read or refused."""
    f = define("def f(x: annotation): ...", annotation=annotation)
    hydration = Hydration(f)

    shown = hydration.redacted((value,), {})

    assert shown is not None
    assert "hunter2" not in shown[0]
    with contextlib.suppress(InvalidClientState):
        hydration.arguments((value,), {})
