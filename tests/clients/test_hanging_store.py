"""A store that hangs or loses replies: what a call costs then, and what it leaves behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_statekit import Clients, contention
from celery_statekit.errors import AmbiguousWrite, StoreError, StoreUnavailable
from celery_statekit.stores import Store
from celery_statekit.testing import LosesReplies, ManualClock

from .orders import DEADLINE, Order, add


class Hangs(LosesReplies):
    """A store that hangs from a moment on: each call takes longer than any deadline here."""

    deadline = 0.05

    def __init__(self, store: Store) -> None:
        super().__init__(store, every=10**9)
        #: Calls made since it hangs; None before.
        self.asked: list[str] | None = None

    def hang(self, _: object = None) -> None:
        """From now on no call is answered."""
        self.asked = []

    def _call(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        if self.asked is None:
            return super()._call(call, *args, **kwargs)
        self.asked.append(call)
        time.sleep(self.deadline * 1.5)
        raise (AmbiguousWrite if call == "write" else StoreUnavailable)(self.name, "it hangs")


class LosesLeases(LosesReplies):
    """A store of which the reply to one ``acquire`` is lost, after it was carried out."""

    def __init__(self, store: Store, which: int) -> None:
        super().__init__(store, every=10**9)
        self._left = which

    def _call(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        answer = super()._call(call, *args, **kwargs)
        self._left -= call == "acquire"
        if call == "acquire" and self._left == 0:
            raise StoreUnavailable(self.name, "its reply was lost, on purpose")
        return answer


def work(orders: Clients[Order], hang: Callable[[], object]) -> None:
    """A block during which the store begins to hang."""
    with orders.exclusive("o-17"):
        hang()


def fail(orders: Clients[Order], hang: Callable[[], object]) -> None:
    """A block that raises, for a reason of its own, when the store hangs."""
    with orders.exclusive("o-17"):
        hang()
        raise KeyError("o-17")


@pytest.mark.parametrize(
    ("call", "raised"),
    [
        (lambda orders, hang: orders.update("o-17", lambda _: hang()), AmbiguousWrite),
        (lambda orders, hang: orders.create("o-18", items=[hang() or "book"]), AmbiguousWrite),
        (work, AmbiguousWrite),
        (fail, KeyError),
    ],
    ids=["update", "create", "exclusive", "exclusive that raises"],
)
def test_after_its_deadline_a_call_asks_nothing_more(
    store: Store, call: Callable[..., object], raised: type[Exception]
) -> None:
    """One call of a store that hangs outlasts the deadline; no repetition and no tidying follows."""
    hangs = Hangs(store)
    orders = Clients(hangs, Order, deadline=hangs.deadline)
    Clients(store, Order).create("o-17")

    with pytest.raises(raised):
        call(orders, hangs.hang)

    assert hangs.asked == ["write"]


def test_until_its_deadline_a_call_tidies_up(store: Store, orders: Clients[Order]) -> None:
    """Where only a reply is lost, and nothing hangs, mark and lease do not stay."""
    orders.create("o-17")
    lossy = Clients(LosesReplies(store, every=1, applied=False), Order, deadline=DEADLINE)

    with pytest.raises(AmbiguousWrite), lossy.exclusive("o-17") as order:
        add(order)

    hasty = Clients(store, Order, deadline=0.5)
    assert hasty.update("o-17", add).count == 1


@pytest.mark.parametrize("which", [1, 2])
def test_a_lease_whose_reply_was_lost_is_not_held_for_long(
    store: Store, orders: Clients[Order], clock: ManualClock, which: int
) -> None:
    """It is taken for a second first, and given back where the reply to its renewal is lost."""
    orders.create("o-17")
    unlucky = Clients(LosesLeases(store, which), Order, deadline=DEADLINE)

    with pytest.raises(StoreUnavailable), unlucky.exclusive("o-17", 3600.0):
        pass
    clock.advance(contention.LEASE * 1.1)

    with Clients(store, Order, deadline=0.01).exclusive("o-17") as order:
        add(order)
    assert orders.get("o-17").count == 1


def test_a_lease_that_is_not_given_back_is_one_line(
    store: Any, orders: Clients[Order], caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    """It says which and why; the traceback is for who debugs."""

    def fail(*_: object) -> None:
        raise StoreError(store.name, "on purpose")

    orders.create("o-17")
    monkeypatch.setattr(store, "release", fail)
    with caplog.at_level(logging.DEBUG, contention.__name__), orders.exclusive("o-17"):
        pass

    shown, detail = caplog.records
    assert (shown.levelname, shown.exc_info) == ("WARNING", None)
    assert orders.key("o-17") in shown.getMessage()
    assert "on purpose" in shown.getMessage()
    assert detail.levelname == "DEBUG"
    assert detail.exc_info
