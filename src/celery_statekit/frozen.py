"""Frozen dataclasses that are copied as fast as a dictionary."""

from __future__ import annotations

from typing import Any, TypeVar

_T = TypeVar("_T")


def changed(value: _T, **fields: Any) -> _T:
    """A copy of ``value``, a dataclass without slots, with these ``fields`` in place of its own.

    What ``dataclasses.replace`` makes, at a tenth of its cost: ``__post_init__`` is not called, so
    the fields must be known to be good.
    """
    copy = object.__new__(type(value))
    held = copy.__dict__
    held.update(value.__dict__)
    held.update(fields)
    return copy
