"""Hydration: clients at the boundary of a task, as the annotations of its ``run`` say.

On the wire a client is a plain dict. A parameter or return value annotated with a ClientState
class, or with one inside Optional, a union, list, tuple or dict, is a client again in the task.
"""

from __future__ import annotations

import inspect
import logging
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final, get_args, get_origin

from celery.utils.saferepr import saferepr

from celery_statekit.client import ClientState
from celery_statekit.declared import annotations_of
from celery_statekit.errors import InvalidDefinition
from celery_statekit.shapes import Shape, shape_of

logger = logging.getLogger(__name__)

#: Longest argsrepr and kwargsrepr, in characters (celery 5.7, ``app/amqp.py``).
REPR_LENGTH: Final = 1024


class Hydration:
    """What the annotations of one task's ``run`` make of its arguments and of its result.

    They are read at the first use, so that they may speak of what is defined later in the module.
    One that cannot be resolved even then is left out, with one warning; but if it names a
    ClientState class, every use raises :exc:`~celery_statekit.errors.InvalidDefinition`: the class
    must be imported at the top level of the module.

    Args:
        run: a task's ``run``; what ``functools.wraps`` and Celery's autoretry put around it is
            looked through.
        bound: ``run`` is the function of a method, taken from its class: the first parameter is
            the task. A bound method (``task.run``) says so itself.
    """

    def __init__(self, run: Callable[..., Any], *, bound: bool = False) -> None:
        self._run = run
        self._bound = bound

    @classmethod
    def of(cls, run: Callable[..., Any], *, bound: bool = False) -> Hydration:
        """The hydration of ``run``; the same one each time."""
        return _made(run, bound)

    @property
    def idle(self) -> bool:
        """Whether no parameter is a client; the result may still be one."""
        return self._parameters.idle

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """``args`` and ``kwargs`` with clients in place of their dicts, in new containers.

        A client among them (an eager call) is copied. Arguments that do not fit the signature are
        left for Python to refuse. With nothing to do, both are returned as they are.

        Raises:
            InvalidClientState: an argument is not the client that its parameter declares; the
                path says where: ``arguments.order.items[0]``.
            PayloadTooLarge: a client is larger than 256 KiB.
        """
        if self._parameters.idle:
            return args, kwargs
        return self._parameters.each(
            args,
            kwargs,
            lambda shape, value, name: shape.read(value, f"arguments.{name}", strict=True),
        )

    def result(self, value: Any) -> Any:
        """``value``, which ``run`` returned, with clients in place of the dicts it declares.

        What is no dict where a client is declared stays as it is.

        Raises:
            InvalidClientState: a dict is not the client that is declared.
        """
        shape = self._shapes.get("return")
        return value if shape is None else shape.read(value, "result", strict=False)

    def redacted(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, str] | None:
        """``argsrepr`` and ``kwargsrepr`` for Celery's headers, without the fields of clients.

        Celery makes its own of what it publishes, and a chord's body and a retry publish dicts
        that are decoded already: logs, events and Flower would show them whole. None where no
        parameter is a client.
        """
        if self._parameters.idle:
            return None
        args, kwargs = self._parameters.each(
            args, kwargs, lambda shape, value, _: shape.show(value)
        )
        return saferepr(args, REPR_LENGTH), saferepr(kwargs, REPR_LENGTH)

    @cached_property
    def _function(self) -> tuple[Any, bool]:
        """The innermost function, and whether its first parameter is the task."""
        run, bound = inspect.unwrap(self._run), self._bound
        if inspect.ismethod(run):
            run, bound = inspect.unwrap(run.__func__), True
        return run, bound

    @cached_property
    def _shapes(self) -> Mapping[str, Shape]:
        """By the name of the parameter, or ``return``."""
        run, _ = self._function
        found = {}
        for name, hint in _hints(run):
            shape = shape_of(hint)
            if shape is not None:
                found[name] = shape
            elif _speaks_of_client(hint):
                rule = "Optional, a union with one client, list, tuple or dict"
                logger.warning(
                    "%s.%s: %s is not made a client: the annotation is none of %s",
                    *(run.__module__, run.__qualname__, name, rule),
                )
        return found

    @cached_property
    def _parameters(self) -> _Parameters:
        run, bound = self._function
        shapes = self._shapes
        parameters = _Parameters(idle=not shapes.keys() - {"return"})
        signature = list(inspect.signature(run).parameters.values())
        for parameter in signature[1:] if bound else signature:
            parameters.add(parameter, shapes.get(parameter.name))
        return parameters


@lru_cache(maxsize=4096)
def _made(run: Callable[..., Any], bound: bool) -> Hydration:  # noqa: FBT001 - a key of the cache
    return Hydration(run, bound=bound)


@dataclass
class _Parameters:
    """What each argument of a call is, by place and by name; None: no client."""

    idle: bool
    places: list[tuple[str, Shape | None]] = field(default_factory=list)
    names: dict[str, Shape | None] = field(default_factory=dict)
    #: Of ``*args``, with its name.
    rest: tuple[str, Shape | None] = ("", None)
    #: Of ``**kwargs``.
    others: Shape | None = None

    def add(self, parameter: inspect.Parameter, shape: Shape | None) -> None:
        kind, name = parameter.kind, parameter.name
        if kind is parameter.VAR_POSITIONAL:
            self.rest = name, shape
        elif kind is parameter.VAR_KEYWORD:
            self.others = shape
        else:
            if kind is not parameter.KEYWORD_ONLY:
                self.places.append((name, shape))
            if kind is not parameter.POSITIONAL_ONLY:
                self.names[name] = shape

    def each(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        change: Callable[[Shape, Any, str], Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """New ``args`` and ``kwargs``, with ``change(shape, value, name)`` where a client is."""
        new_args = []
        for index, value in enumerate(args):
            if index < len(self.places):
                name, shape = self.places[index]
            else:
                name, shape = f"{self.rest[0]}[{index - len(self.places)}]", self.rest[1]
            new_args.append(value if shape is None else change(shape, value, name))
        new_kwargs = {}
        for name, value in kwargs.items():
            shape = self.names.get(name, self.others)
            new_kwargs[name] = value if shape is None else change(shape, value, name)
        return tuple(new_args), new_kwargs


# --- what annotations say -------------------------------------------------------------------------


def _speaks_of_client(hint: Any) -> bool:
    if isinstance(hint, type) and get_origin(hint) is None:
        return issubclass(hint, ClientState)
    return any(_speaks_of_client(arg) for arg in get_args(hint))


def _hints(run: Any) -> Iterator[tuple[str, Any]]:
    """Name and resolved annotation of each parameter of ``run``, and of ``return``."""
    try:
        yield from typing.get_type_hints(run, include_extras=True).items()
    except Exception:  # noqa: BLE001 - an annotation is an expression, and may raise anything
        yield from _hints_one_by_one(run)


def _hints_one_by_one(run: Any) -> Iterator[tuple[str, Any]]:
    for name, annotation in annotations_of(run).items():
        alone = types.FunctionType((lambda: None).__code__, run.__globals__)
        alone.__annotations__ = {name: annotation}
        try:
            hint = typing.get_type_hints(alone, include_extras=True)[name]
        except Exception as exc:  # noqa: BLE001 - as above
            _say_unresolved(run, name, annotation, exc)
        else:
            yield name, hint


def _say_unresolved(run: Any, name: str, annotation: object, exc: Exception) -> None:
    text = annotation if isinstance(annotation, str) else repr(annotation)
    task = f"{run.__module__}.{run.__qualname__}"
    if not {cls.__name__ for cls in _client_classes(ClientState)}.isdisjoint(_words(text)):
        raise InvalidDefinition(
            f"an annotation of {task} cannot be resolved ({exc})",
            name,
            text,
            "a class that is imported at the top level of the module, not under TYPE_CHECKING",
        ) from exc
    logger.warning(
        "%s: the annotation of %s cannot be resolved (%s); it is not made a client",
        *(task, name, exc),
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _client_classes(cls: type[ClientState]) -> Iterator[type[ClientState]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _client_classes(subclass)
