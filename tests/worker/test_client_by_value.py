"""A ClientState as an argument and as a result: plain dicts on the wire, clients at both ends."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain, chord, group
from celery import signals as celery_signals

from celery_statekit import ClientState, StatefulTask, States, signals
from celery_statekit.errors import InvalidClientState


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"
    SHIPPED = "Shipped"


class Order(ClientState, states=OrderStates):
    items: list[str] = []
    card: str = ""


SECRET = "4929-1234-5678"


@pytest.fixture
def place():
    """One pool and store will do: what is tested here depends on neither."""
    return "solo", "sqlite"


@pytest.fixture
def add(app):
    """A task that takes an order, adds to it, and gives it back."""

    @app.task(base=StatefulTask, name="shop.add")
    def add(order: Order, item: str = "book") -> Order:
        order.items.append(item)
        return order

    return add


@pytest.fixture
def sent():
    """The headers of every message, as they are published."""
    published = []

    def note(headers, **_):
        published.append(dict(headers))

    celery_signals.before_task_publish.connect(note)
    yield published
    celery_signals.before_task_publish.disconnect(note)


def test_delay_takes_a_client_and_get_gives_one(add, work, ended):
    """``delay(client)`` just works; the result is a client again, and the sender's is untouched."""
    work()
    order = Order("o-1", items=["pen"])
    result = add.delay(order)
    assert ended(result).state == "SUCCESS"
    got = result.get()
    assert isinstance(got, Order)
    assert (got.client_id, got.items) == ("o-1", ["pen", "book"])
    assert order.items == ["pen"]
    assert result.result == got == result.info


def test_result_from_an_id_is_a_client_too(add, work, ended):
    """``task.AsyncResult(id)`` gives a client as well."""
    work()
    result = add.delay(Order("o-1"))
    ended(result)
    assert isinstance(add.AsyncResult(result.id).get(), Order)


def test_state_travels_with_the_client(app, work, ended):
    """The receiver gets the client in the state in which it was sent, and may move it on."""

    @app.task(base=StatefulTask)
    def ship(order: Order) -> Order:
        order.enter(OrderStates.SHIPPED)
        return order

    work()
    order = Order("o-1")
    order.enter(OrderStates.PAID)
    result = ship.delay(order)
    ended(result)
    assert result.get().state == "SHIPPED"
    assert order.state == "PAID"


def test_every_kind_of_parameter(app, work, ended):
    """Positional, keyword, bound, list, dict, Optional and variadic parameters are hydrated."""
    kinds = {}

    @app.task(bind=True, base=StatefulTask)
    def load(
        self,
        first: Order,
        maybe: Order | None,
        many: list[Order],
        *rest: Order,
        named: dict[str, Order],
        plain: dict[str, Any],
        **others: Order,
    ):
        kinds.update(
            first=type(first),
            maybe=maybe,
            many=[type(one) for one in many],
            rest=[type(one) for one in rest],
            named=type(named["a"]),
            plain=type(plain["order"]),
            others=type(others["last"]),
        )

    work()
    order = Order("o-1")
    result = load.delay(
        order, None, [order, order], order, named={"a": order}, plain={"order": order}, last=order
    )
    assert ended(result).state == "SUCCESS"
    assert kinds == {
        "first": Order,
        "maybe": None,
        "many": [Order, Order],
        "rest": [Order],
        "named": Order,
        "plain": dict,
        "others": Order,
    }


def test_class_based_task(app, work, ended):
    """``run`` of a class-based task is hydrated by its annotations too."""

    class Add(StatefulTask):
        name = "shop.add_class"

        def run(self, order: Order) -> Order:
            order.items.append("book")
            return order

    task = app.register_task(Add())
    work()
    result = task.delay(Order("o-1"))
    ended(result)
    assert result.get().items == ["book"]


def test_autoretry_does_not_hide_the_annotations(app, work, ended):
    """A task with ``autoretry_for`` is hydrated in each attempt."""
    seen = []

    @app.task(bind=True, base=StatefulTask, autoretry_for=(OSError,), retry_kwargs={"countdown": 0})
    def load(self, order: Order) -> Order:
        seen.append(type(order))
        if not self.request.retries:
            raise OSError("again")
        return order

    work()
    result = load.delay(Order("o-1"))
    ended(result)
    assert seen == [Order, Order]
    assert isinstance(result.get(), Order)


def test_annotation_may_speak_of_a_class_defined_later(app, work, ended):
    """A task made at once, before the class its annotation names, hydrates all the same."""
    app.finalize()
    module = {"__name__": "shop", "app": app, "StatefulTask": StatefulTask, "Order": Order}
    code = """
from __future__ import annotations
@app.task(base=StatefulTask)
def load(order: Later) -> Later:
    assert type(order) is Later
    return order
class Later(Order):
    pass
"""
    exec(compile(code, "shop.py", "exec", dont_inherit=True), module)
    work()
    result = module["load"].delay(module["Later"]("o-1"))
    assert ended(result).state == "SUCCESS"
    assert type(result.get()) is module["Later"]


def test_without_annotation_it_is_a_dict(app, work, ended):
    """A parameter that says nothing gets the plain document, and a result stays one."""

    @app.task(base=StatefulTask)
    def load(order):
        return order

    work()
    result = load.delay(Order("o-1", items=["pen"]))
    ended(result)
    assert result.get() == Order("o-1", items=["pen"]).to_dict()


def test_retry_gets_the_original(app, work, ended):
    """A client changed before a retry arrives unchanged in the next attempt."""
    seen = []

    @app.task(bind=True, base=StatefulTask)
    def load(self, order: Order, many: list[Order], *, named: Order) -> Order:
        seen.append((list(order.items), list(many[0].items), list(named.items)))
        for one in (order, many[0], named):
            one.items.append("book")
            one.enter(OrderStates.PAID)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return order

    work()
    order = Order("o-1", items=["pen"])
    result = load.delay(order, [order], named=order)
    assert ended(result).state == "SUCCESS"
    assert seen == [(["pen"], ["pen"], ["pen"])] * 3


def test_chain(add, work, ended):
    """Each step of a chain gets what the step before it returned, as a client."""
    work()
    result = chain(add.s(Order("o-1"), "a"), add.s("b"), add.s("c")).apply_async()
    ended(result)
    assert result.get().items == ["a", "b", "c"]
    assert isinstance(result.parent.get(), Order)


def test_group(add, work, until):
    """A group of tasks gives a list of clients."""
    work()
    results = group(add.s(Order(f"o-{n}")) for n in range(3)).apply_async()
    until(results.ready)
    assert [result.get().client_id for result in results] == ["o-0", "o-1", "o-2"]
    assert all(isinstance(result.get(), Order) for result in results)


def test_group_result(add, work):
    """The results of a group are clients, however they are asked for."""
    work()
    results = group(add.s(Order(f"o-{n}")) for n in range(2)).apply_async()
    joined = results.join(timeout=10, interval=0.01)
    assert results.get(timeout=10, interval=0.01) == joined
    assert [type(order) for order in joined] == [Order, Order]


def test_chord_body_gets_a_list_of_clients(app, add, work, ended):
    """The body of a chord, annotated ``list[Order]``, gets clients."""
    kinds = []

    @app.task(base=StatefulTask)
    def collect(orders: list[Order]) -> list[Order]:
        kinds.extend(type(order) for order in orders)
        return sorted(orders, key=lambda order: order.client_id)

    work()
    result = chord([add.s(Order("o-1")), add.s(Order("o-2"))], collect.s()).apply_async()
    ended(result)
    assert kinds == [Order, Order]
    assert [order.client_id for order in result.get()] == ["o-1", "o-2"]


def test_subclass_arrives_as_what_the_receiver_declares(app, work, ended):
    """A receiver reads the class it declares, and what it does not know is kept."""

    class Gift(Order, kind="Order"):
        card_text: str = "for you"

    @app.task(base=StatefulTask)
    def load(order: Order) -> Order:
        assert type(order) is Order
        return order

    work()
    result = load.delay(Gift("o-1", card_text="hello"))
    ended(result)
    assert result.get().to_dict()["card_text"] == "hello"


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"client_id": "o-1", "state": "BASKET", "items": [5]}, "items[0]"),
        ({"client_id": "o-1", "state": "NOWHERE"}, "state"),
        ({"state": "BASKET"}, "client_id"),
        ("o-1", "arguments.order"),
        (None, "arguments.order"),
    ],
)
def test_wrong_document_fails_with_its_place(add, work, ended, document, path):
    """What is no such client fails the run with ``InvalidClientState``, and says where."""
    work()
    result = add.delay(document)
    state = ended(result)
    assert (state.state, state.error["type"]) == ("FAILURE", "InvalidClientState")
    with pytest.raises(InvalidClientState) as raised:
        result.get()
    assert path in raised.value.path
    assert raised.value.path.startswith("arguments.order")


def test_wrong_document_does_not_run_the_body(app, work, ended):
    """The body is not run with a client that is none."""
    run = []

    @app.task(base=StatefulTask)
    def load(order: Order):
        run.append(order)

    work()
    ended(load.delay({"client_id": 7}))
    assert run == []


def test_document_of_an_outsider_is_read_as_data(app, work, ended):
    """A client whose field looks like one of kombu's envelopes arrives as it was sent."""

    class Box(ClientState):
        content: Any = None

    envelope = {"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}

    @app.task(base=StatefulTask)
    def load(box):
        return Box.from_dict(box).content == envelope

    work()
    result = load.delay(Box("b-1", content=envelope))
    assert ended(result).state == "SUCCESS"
    assert result.get() is True


# --- what may be seen of it ----------------------------------------------------------------------


def test_first_publish_shows_no_fields(add, work, ended, sent):
    """The headers of a publish name the client, and none of its fields."""
    work()
    ended(add.delay(Order("o-1", card=SECRET)))
    ended(add.delay(order=Order("o-1", card=SECRET)))
    for headers in sent:
        shown = headers["argsrepr"] + headers["kwargsrepr"]
        assert SECRET not in shown
        assert "o-1" in shown


def test_retry_shows_no_fields(app, work, ended, sent):
    """Neither do those of a retry, whose arguments are dicts by then."""

    @app.task(bind=True, base=StatefulTask)
    def load(self, order: Order, *, named: Order):
        if not self.request.retries:
            raise self.retry(countdown=0)

    work()
    order = Order("o-1", card=SECRET)
    ended(load.delay(order, named=order))
    assert len(sent) == 2
    for headers in sent:
        assert SECRET not in headers["argsrepr"] + headers["kwargsrepr"]


def test_chain_and_chord_show_no_fields(app, add, work, ended, sent):
    """Neither do those of chain steps, chord members and the chord's body."""

    @app.task(base=StatefulTask)
    def collect(orders: list[Order]):
        return len(orders)

    work()
    order = Order("o-1", card=SECRET)
    ended(chain(add.s(order), add.s("pen")).apply_async())
    ended(chord([add.s(order), add.s(order)], collect.s()).apply_async())
    assert len(sent) == 5
    for headers in sent:
        assert SECRET not in headers["argsrepr"] + headers["kwargsrepr"]


def test_sent_by_name_shows_no_fields(app, add, work, ended, sent):
    """Neither do those of ``app.send_task`` with a client."""
    work()
    ended(add.AsyncResult(app.send_task("shop.add", (Order("o-1", card=SECRET),)).id))
    assert SECRET not in sent[0]["argsrepr"]


def test_neither_history_nor_error_shows_fields(add, work, ended):
    """A run that fails leaves none of the client's fields in its record."""
    work()
    document = {**Order("o-1", card=SECRET).to_dict(), "items": 5}
    result = add.delay(document)
    state = ended(result)
    assert state.state == "FAILURE"
    assert SECRET not in repr(state) + repr(result.history())


# --- eager ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("always", [True, False])
def test_eager_run_gets_a_copy(app, add, always):
    """An eager run gets a copy too, and its result is a client."""
    app.conf.task_always_eager = always
    order = Order("o-1", items=["pen"])
    result = add.delay(order) if always else add.apply((order,))
    assert result.get().items == ["pen", "book"]
    assert isinstance(result.get(), Order)
    assert order.items == ["pen"]


def test_direct_call_takes_what_it_is_given(add):
    """A task that is called as a function gets the object itself, as any function does."""
    order = Order("o-1")
    assert add(order) is order


# --- by id ---------------------------------------------------------------------------------------


def test_update_named_once_is_applied_once_over_retries(app, work, ended, hear):
    """``once=`` applies an update once for all attempts of a task, and says who did it."""
    heard = hear(signals.client_changed)

    @app.task(bind=True, base=StatefulTask, name="shop.pay")
    def pay(self, id):
        orders = self.clients(Order)
        orders.update(id, lambda order: order.enter(OrderStates.PAID), once="pay")
        orders.update(id, lambda order: order.items.append("book"), once="fill")
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return orders.get(id).items

    @app.task(bind=True, base=StatefulTask)
    def create(self, id):
        self.clients(Order).create(id)

    work()
    ended(create.delay("o-1"))
    result = pay.delay("o-1")
    assert ended(result).state == "SUCCESS"
    assert result.get() == ["book"]
    moves = [change for changed in heard for change in changed.changes]
    assert [change.to_state for change in moves] == ["PAID"]
    assert (moves[0].task, moves[0].task_id, moves[0].attempt) == ("shop.pay", result.id, 1)
