"""Every public write, failed at its first call to the store, at its second, until none is left.

What was acknowledged is there, once; after an error there is the previous record or the new one,
whole; and a second try succeeds, or is told that it need not.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable

import pytest

from celery_statekit.errors import StatekitError, StoreError
from celery_statekit.stores import MemoryStore, Store

from .writes import WRITES, Case, Write

#: Ways to fail; and for how many calls, for what comes after a failure may fail as well.
MODES = [
    {"mode": mode, "after": after, "lasts": lasts}
    for mode in ("error", "doubt")
    for after in (False, True)
    for lasts in (1, 50)
]

#: Of these a process is killed, too.
KILLED = (
    "publish", "publish without waiting", "claim", "enter", "success", "revoke", "update",
    "update once", "exclusive",
)  # fmt: skip


def refused(act: Callable[[Case], object], case: Case) -> StatekitError | None:
    """The error of ours that the write ends in; None: it is acknowledged."""
    try:
        act(case)
    except StatekitError as exc:
        return exc
    return None


def done(write: Write, store: Store, prefix: str) -> tuple[tuple[object, ...], int]:
    """What is to be seen after the write where nothing fails, and how many calls it takes."""
    case = write.case(store, prefix)
    case.arm(0)
    assert refused(write.act, case) is None
    return case.seen(), case.failing.calls


def judge(write: Write, case: Case, seen: object, after: object, where: str) -> None:
    """Try again what ended in an error, or in the death of its process."""
    case.heal()
    again = refused(write.act, case)
    if seen == after:
        assert again is None or not isinstance(again, StoreError), where
        assert write.adds_up or case.seen() == after, where
    else:
        assert again is None, where
        assert case.seen() == after, where


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.name)
def test_whichever_call_fails(write: Write, store: Store) -> None:
    """Each point of each write, each way to fail, and the second try."""
    prefix = f"crash-{os.getpid()}"
    after, calls = done(write, store, prefix)
    for mode in MODES:
        words = {name: mode[name] for name in ("mode", "after")}
        for n in itertools.count(1):
            case = write.case(store, prefix)
            before = case.seen()
            case.arm(n, until=n + int(mode["lasts"]) - 1, **words)
            error = refused(write.act, case)
            seen = case.seen()
            where = f"{write.name}: call {n} of {calls}, {mode}: {error!r}"
            assert error is None or isinstance(error, StoreError), where
            assert seen in ({after} if error is None else {before, after}), where
            if not case.failing.fired:
                assert error is None, where
                break
            if error is not None:
                judge(write, case, seen, after, where)


@pytest.mark.parametrize("after_call", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "write", [write for write in WRITES if write.name in KILLED], ids=lambda write: write.name
)
def test_whichever_call_is_the_last(write: Write, store: Store, after_call: bool) -> None:
    """A process is killed -9 at each call: what it leaves is whole, and others can go on."""
    if isinstance(store, MemoryStore):
        pytest.skip("it dies with its process")
    prefix = f"crash-{os.getpid()}"
    after, _ = done(write, store, prefix)
    for n in itertools.count(1):
        case = write.case(store, prefix)
        before = case.seen()
        ended = in_a_process(write, case, n, after_call)
        seen = case.seen()
        where = f"{write.name}: killed at call {n}"
        if ended == 0:
            assert seen == after, where
            assert n > 1
            break
        assert ended == -signal.SIGKILL
        assert seen in {before, after}, where
        judge(write, case, seen, after, where)


def in_a_process(write: Write, case: Case, n: int, after_call: bool) -> int:
    """How a process ends that does the write, and is killed at its n-th call."""
    pid = os.fork()
    if pid == 0:
        try:
            case.arm(n, mode="kill", after=after_call)
            write.act(case)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
