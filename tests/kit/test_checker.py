"""The checker of histories accepts all that a correct store can do, and nothing that it cannot."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_statekit.errors import InvalidInput
from celery_statekit.testing import BrokenHistory, Kept, Operation, check_history

from .bugs import BUGS
from .simulated import Caller, Run, Shelf

ENDS = ("DONE",)


def broken_rules(run: Run) -> set[str]:
    """The rules that the run breaks."""
    try:
        check_history(run.operations, run.kept, ends=ENDS)
    except BrokenHistory as exc:
        return set(exc.report.rules)
    return set()


# --- correct ones --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    callers=st.integers(1, 12),
    clients=st.integers(1, 5),
    tasks=st.integers(0, 20),
    operations=st.integers(1, 300),
)
def test_what_a_correct_store_does_is_accepted(
    seed: int, callers: int, clients: int, tasks: int, operations: int
) -> None:
    """Whatever the interleaving, the replies that are lost and the tries that are given up."""
    run = Run(seed, callers=callers, clients=clients, tasks=tasks, operations=operations)

    report = check_history(run.operations, run.kept, ends=ENDS, at_least=0.0)
    assert report.operations == len(run.operations)
    assert report.operations == report.acknowledged + report.failed + report.ambiguous
    assert report.settled <= report.ambiguous


def test_the_order_in_which_operations_are_given_is_nothing() -> None:
    """They come from many processes, each with a log of its own."""
    run = Run(1)
    report = check_history(run.operations, run.kept, ends=ENDS)

    assert check_history(reversed(run.operations), run.kept, ends=ENDS) == report
    assert report.acknowledged > 400
    assert report.ambiguous > report.settled > 0


def test_a_history_may_be_known_in_part() -> None:
    """A record that keeps the newest names only, or none: the readers' word counts as well."""
    run = Run(2, clients=8, tasks=0)
    kept = {key: Kept(whole.version, whole.applied[-3:]) for key, whole in run.kept.items()}

    check_history(run.operations, kept)
    older = {
        key: Kept(whole.version, whole.applied, first=whole.version) for key, whole in kept.items()
    }
    last = {whole.applied[-1] for whole in older.values()}
    check_history([one for one in run.operations if one.id in last], older)


# --- seeded bugs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bug", "rule"), BUGS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("seed", range(3))
def test_a_seeded_bug_is_caught_by_the_rule_that_names_it(
    bug: type[Shelf | Caller], rule: str, seed: int
) -> None:
    """A store or a caller that is wrong in one way only is found out, whatever the interleaving."""
    if issubclass(bug, Shelf):
        run = Run(seed, shelf=bug, clients=9, operations=1500)
    else:
        run = Run(seed, caller=bug, clients=9, operations=1500)

    assert rule in broken_rules(run)


# --- single histories ----------------------------------------------------------------------------

FIRST = Operation("a", "k", "update", 0.0, 1.0, "ok", base=0, version=1)
SECOND = Operation("b", "k", "update", 2.0, 3.0, "ok", base=1, writer="a", version=2)
KEPT = {"k": Kept(2, ["a", "b"])}


def test_what_nobody_could_know_yet_is_found_out() -> None:
    """One that had ended before another began cannot have seen what that one wrote."""
    early = Operation("c", "k", "read", 0.0, 1.5, "ok", base=2, writer="b")

    with pytest.raises(BrokenHistory, match="order: k: c found version 2 before b began") as caught:
        check_history([FIRST, SECOND, early], KEPT)
    assert caught.value.report.operations == 3
    assert {violation.rule for violation in caught.value.report.violations} == {"order"}


def test_an_update_that_never_returned_counts_if_it_is_there() -> None:
    """Once at most, and it is said how many were."""
    killed = SECOND._replace(outcome="ambiguous", completed=math.inf, version=None)

    assert check_history([FIRST, killed], KEPT).settled == 1
    assert check_history([FIRST, killed], {"k": Kept(1, ["a"])}).settled == 0
    with pytest.raises(BrokenHistory, match="doubled: k: b is version 2 and version 3"):
        check_history([FIRST, killed], {"k": Kept(3, ["a", "b", "b"])})


def test_nothing_is_no_history() -> None:
    """Unless it is said that nothing may have happened."""
    with pytest.raises(BrokenHistory, match=r"few: 0.0% of 0 operations succeeded, not 50.0%"):
        check_history([], {})
    assert check_history([], {}, at_least=0.0).operations == 0


def test_a_message_shows_some_and_counts_all() -> None:
    """A store that is quite wrong breaks every rule thousands of times."""
    stale = [Operation(f"r{number}", "k", "read", 4.0, 5.0, "ok", base=1) for number in range(1000)]
    with pytest.raises(BrokenHistory) as caught:
        check_history([FIRST, SECOND, *stale], KEPT)

    assert caught.value.report.rules == {"order": 1000}
    assert len(str(caught.value).splitlines()) == 12


@pytest.mark.parametrize(
    "operations", [[FIRST, FIRST], [FIRST._replace(version=None)]], ids=["one id", "no version"]
)
def test_what_is_no_history_is_refused(operations: list[Operation]) -> None:
    """An id that two operations have, an acknowledgement without a version."""
    with pytest.raises(InvalidInput):
        check_history(operations, KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 1000])
def test_long_histories_are_checked(keys: int) -> None:
    """A mistake among 200,000 operations is found, on one key and on many."""
    operations, versions = [], [0] * keys
    for number in range(200_000):
        key = number % keys
        base, versions[key] = versions[key], versions[key] + 1
        writer = f"{number - keys}" if base else None
        operations.append(
            Operation(
                f"{number}", f"{key}", "update", number, number + 0.5, "ok", base, writer, base + 1
            )
        )
    kept = {f"{key}": Kept(version) for key, version in enumerate(versions)}
    assert check_history(operations, kept).acknowledged == 200_000

    operations[123_456] = operations[123_456]._replace(outcome="failed", version=None)
    with pytest.raises(BrokenHistory) as caught:
        check_history(operations, kept)
    assert caught.value.report.rules == {"failed": 1}
