"""The classes that the cases speak of."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from celery_statekit import ClientState, States


class OrderStates(States):
    BASKET = "In the basket"
    PAID = "Paid"
    SHIPPED = "Shipped"

    __guards__ = {("BASKET", "SHIPPED"): lambda order: bool(order.items) or "nothing to ship"}


class Twin(enum.Enum):
    """Members of the same names, in another class."""

    BASKET = 1
    PAID = 2


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


#: So many states, with such long names, that all of them fill no line.
Many: Final = States("Many", {f"STATE_{n:02}_{'X' * 40}": f"State {n}" for n in range(60)})


@dataclass
class Address:
    street: str
    number: int = 1


@dataclass
class Unfinished:
    """A value that lacks its field."""

    street: str = field(init=False)


class Order(ClientState, states=OrderStates, version=2):
    items: list[str] = []
    anything: Any = None
    count: int = 0
    share: float = 0.0
    price: Decimal = Decimal(0)
    color: Color = Color.RED
    home: Address | None = None
    homes: list[Address] = []
    tags: set[str] = set()
    pair: tuple[int, str] = (1, "a")
    prices: dict[str, float] = {}
    at: datetime | None = None
    raw: bytes = b""

    @classmethod
    def upgrade(cls, data, version):
        """What the document asks for: these cases try what may go wrong."""
        match data.pop("upgrade", ""):
            case "raise":
                raise RuntimeError("no upgrade\n" * 200)
            case "return":
                return data["returned"]
            case "change":
                return {**data, **data["changes"]}
        return data


class Wide(ClientState, states=Many):
    """A client with many states."""


def pay(order: Order) -> None:
    """An update that moves."""
    order.enter(OrderStates.PAID, reason="card")


#: What a case may name.
CLASSES: Final[dict[str, Any]] = {
    "Address": Address,
    "Color": Color,
    "Enum": enum.Enum,
    "Many": Many,
    "Order": Order,
    "OrderStates": OrderStates,
    "States": States,
    "Twin": Twin,
    "Unfinished": Unfinished,
    "int": int,
    "str": str,
    "object": object,
    "dict[int, str]": dict[int, str],
}
