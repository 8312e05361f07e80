"""Writes whose reply was lost: what became of them is found out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, TypeAlias, cast

from celery_statekit.errors import AmbiguousWrite, StoreError, StoreUnavailable
from celery_statekit.record import Change, Record
from celery_statekit.stores.base import Beside, Labels, Store, WritesBeside

#: How often a write whose reply is lost is repeated.
TRIES: Final = 10

#: What became of a write whose reply is lost.
_Applied: TypeAlias = Literal["yes", "no", "not yet", "unknown"]


def write_settled(
    store: Store,
    record: Record,
    *,
    expect: Record | None,
    changes: Sequence[Change],
    ttl: float | None,
    labels: Labels,
    beside: Beside | None = None,
    until: float = math.inf,
    doubt: AmbiguousWrite | None = None,
) -> bool:
    """As ``store.write``, but where the reply is lost it is found out what became of the write.

    The same write is repeated as long as nobody else has written: it carries its own id, so that
    one which arrives late, after its reply was given up, is known again and not applied twice.

    Args:
        until: moment of ``time.monotonic()`` after which nothing more is asked of the store.
        doubt: what this very write has ended in before.

    Raises:
        AmbiguousWrite: that cannot be told, for the record is gone or far ahead by now, or the
            moment is over.
    """
    write = store.write if beside is None else _writing_beside(store, beside)
    for _ in range(TRIES):
        try:
            if write(record, expect=expect, changes=changes, ttl=ttl, labels=labels):
                return True
            if doubt is None:
                return False
        except AmbiguousWrite as ambiguous:
            doubt = AmbiguousWrite(ambiguous.store, ambiguous.why, record.writes[-1])
        except StoreError:
            if doubt is None:
                raise
            # It is about the repetition; the first one may have been applied.
            raise doubt from None
        applied = _found_out(store, record, expect, until)
        if applied in ("yes", "no"):
            return applied == "yes"
        if applied == "unknown":
            raise doubt
    raise doubt or AssertionError


def _writing_beside(store: Store, beside: Beside) -> Callable[..., bool]:
    return partial(cast("WritesBeside", store).write_beside, beside=beside)


def _found_out(store: Store, write: Record, expect: Record | None, until: float) -> _Applied:
    if time.monotonic() >= until:
        return "unknown"
    try:
        current = store.read(write.key)
    except StoreUnavailable:
        return "unknown"
    applied = _applied(write, expect, current)
    return "unknown" if applied == "not yet" and time.monotonic() >= until else applied


def _applied(write: Record, expect: Record | None, current: Record | None) -> _Applied:
    if current is None:
        return "not yet" if expect is None else "unknown"
    if expect is not None and current.same(expect):
        return "not yet"
    follows = current.follows(write)
    if follows is None:
        # Another incarnation began in the same place: ours was not, or is gone again.
        return "no" if expect is None and current.version == 1 else "unknown"
    return "yes" if follows else "no"
