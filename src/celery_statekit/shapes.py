"""The shapes in which clients come as arguments and results: one, perhaps one, a list of them."""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

from celery_statekit.client import ClientState, summary
from celery_statekit.errors import InvalidClientState, InvalidInput
from celery_statekit.plain import shown, where


class Shape(Protocol):
    """A client, or what holds clients."""

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        """``value`` with clients in it.

        Args:
            strict: refuse what has another shape, and copy what is a client already; else leave
                both as they are.
        """

    def show(self, value: Any) -> Any:
        """What stands for ``value`` in a ``repr``."""


class _Shown:
    """Something whose ``repr`` is given."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _One:
    """One client."""

    cls: type[ClientState]

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        if isinstance(value, self.cls):
            return copy.deepcopy(value) if strict else value
        if isinstance(value, dict):
            try:
                return self.cls.from_dict(value)
            except InvalidInput as exc:
                raise type(exc)(exc.what, _inside(path, exc.path), exc.got, exc.allowed) from exc
        return _other(value, path, f"{self.cls.__name__} or its dict", strict=strict)

    def show(self, value: Any) -> Any:
        if value is None or isinstance(value, ClientState):
            return value
        if isinstance(value, dict):
            client_id, state = value.get("client_id"), value.get("state", value.get("curr_state"))
            if isinstance(client_id, str) and isinstance(state, str):
                return _Shown(summary(self.cls, client_id, state))
        return _Shown(f"<{self.cls.__name__}>")


@dataclass(frozen=True)
class _Row:
    """A list or tuple of any length."""

    item: Shape
    kind: type[list[Any] | tuple[Any, ...]]

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        if not isinstance(value, (list, tuple)):
            return _other(value, path, "a list", strict=strict)
        return self.kind(
            self.item.read(item, where(path, [index]), strict=strict)
            for index, item in enumerate(value)
        )

    def show(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return self.item.show(value)
        return type(value)(self.item.show(item) for item in value)


@dataclass(frozen=True)
class _Places:
    """A tuple of which each place has its own type; None: no client."""

    items: tuple[Shape | None, ...]

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(self.items):
            return _other(value, path, f"a list of {len(self.items)}", strict=strict)
        return tuple(
            item if shape is None else shape.read(item, where(path, [index]), strict=strict)
            for index, (item, shape) in enumerate(zip(value, self.items, strict=True))
        )

    def show(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(self.items):
            return _Shown(f"<{type(value).__name__}>")
        pairs = zip(value, self.items, strict=True)
        return tuple(
            _elsewhere(item) if shape is None else shape.show(item) for item, shape in pairs
        )


@dataclass(frozen=True)
class _Table:
    """A dict whose values are clients."""

    item: Shape

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        if not isinstance(value, dict):
            return _other(value, path, "a dict", strict=strict)
        return {
            name: self.item.read(item, where(path, [name]), strict=strict)
            for name, item in value.items()
        }

    def show(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return self.item.show(value)
        return {name: self.item.show(item) for name, item in value.items()}


@dataclass(frozen=True)
class _Maybe:
    """Perhaps a client, perhaps something else that is no container."""

    item: Shape

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        return value if _is_scalar(value) else self.item.read(value, path, strict=strict)

    def show(self, value: Any) -> Any:
        return value if _is_scalar(value) else self.item.show(value)


@dataclass(frozen=True)
class _Optional(_Maybe):
    """A client or None."""

    def read(self, value: Any, path: str, *, strict: bool) -> Any:
        return None if value is None else self.item.read(value, path, strict=strict)

    def show(self, value: Any) -> Any:
        return None if value is None else self.item.show(value)


def _elsewhere(value: object) -> object:
    """What is shown where no client belongs: one may have come there all the same."""
    return value if _is_scalar(value) else _Shown(f"<{type(value).__name__}>")


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _other(value: Any, path: str, allowed: str, *, strict: bool) -> Any:
    if strict:
        raise InvalidClientState("no client", path, shown(value), allowed)
    return value


def _inside(path: str, inner: str) -> str:
    """``$.items[0]`` of what stands at ``path``; what is no path in a document stays."""
    return path + inner[1:] if inner.startswith("$") else inner


def shape_of(hint: Any) -> Shape | None:  # noqa: PLR0911 - one for each shape
    """The shape of an annotation; None where no client is in it, or none can be told."""
    hint = getattr(hint, "__value__", hint)  # type X = ..., from Python 3.12 on
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        is_client = isinstance(hint, type) and issubclass(hint, ClientState)
        return _One(hint) if is_client else None
    if origin is Annotated:
        return shape_of(args[0])
    if origin is tuple and args[-1:] != (...,):
        places = tuple(shape_of(arg) for arg in args)
        return _Places(places) if any(places) else None
    if origin in (Union, types.UnionType):
        return _shape_of_union(args)
    if origin is dict or origin in (Mapping, MutableMapping):
        item = shape_of(args[1])
        return None if item is None else _Table(item)
    if origin in (list, tuple, Sequence, MutableSequence):
        item = shape_of(args[0])
        return None if item is None else _Row(item, tuple if origin is tuple else list)
    return None


def _shape_of_union(args: tuple[Any, ...]) -> Shape | None:
    others = [arg for arg in args if arg is not types.NoneType]
    shapes = [shape for shape in map(shape_of, others) if shape is not None]
    if len(shapes) != 1:
        return None
    return (_Optional if len(others) == 1 else _Maybe)(shapes[0])
