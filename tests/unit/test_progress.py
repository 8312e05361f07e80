"""Progress, the reporter of a run, and track()."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import json
import logging
import math
import pickle
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from numbers import Integral
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_statekit import reporter as progress_module
from celery_statekit.errors import InvalidInput, InvalidProgress
from celery_statekit.progress import Progress
from celery_statekit.reporter import Reporter, track

#: Seconds that another thread has for what it must do.
DEADLINE: Final = 10.0
#: Lengths around the borders of the chunks that a track counts in.
LENGTHS: Final = (0, 1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 10_001)


def stable(value: object) -> str:
    """A name of a parameter that is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


NOT_AMOUNTS: Final = (
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.5,
    True,
    False,
    "5",
    "50%",
    b"5",
    1j,
    [],
    10**4000,
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    Decimal("1e400000000"),
    Decimal(-1),
    Fraction(-1, 3),
    object(),
)


class Stopped(Exception):
    """What another thread stops a run with."""


class Foreign:
    """An integer of another library, as numpy has them."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == other

    __hash__ = None  # type: ignore[assignment]


Integral.register(Foreign)


class Level(IntEnum):
    HIGH = 3


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(call: Callable[[], Any]) -> Any:
    """What ``call`` returns in another thread."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join(DEADLINE)
    return answers[0]


@contextlib.contextmanager
def at_each_instruction(call: Callable[[], object]) -> Iterator[None]:
    """Do ``call`` at each instruction of the module, as another thread might."""

    def trace(frame: types.FrameType, _event: str, _arg: object) -> Any:
        if frame.f_code.co_filename != progress_module.__file__:
            return None
        frame.f_trace_opcodes = True
        call()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def unpack(error: InvalidInput) -> tuple[str, str, str, str]:
    return error.what, error.path, error.got, error.allowed


def each(rows: Iterator[int], body: Callable[[int], object]) -> None:
    """A loop over ``rows`` that does ``body``."""
    for row in rows:
        body(row)


class Numbers:
    """A generator of numbers that tells how far it was asked and whether it was closed."""

    def __init__(self, length: int = 10**9, fail_at: int | None = None) -> None:
        self.asked = 0
        self.closed = False
        self._length = length
        self._fail_at = fail_at

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self._length):
                self.asked += 1
                if number == self._fail_at:
                    raise KeyError(number)
                yield number
        finally:
            self.closed = True


# --- Progress ------------------------------------------------------------------------------------


FULL: Final = Progress(
    current=40,
    total=100,
    message="rows",
    details={"bad": [1, None], "file": {"name": "a.csv"}},
    step="import",
    step_number=2,
    step_count=3,
    rate=12.5,
    eta=4.8,
    fraction=0.42,
    extra={"later": True},
)


def test_an_empty_progress_is_at_zero() -> None:
    """A progress without arguments has done nothing and knows no total."""
    assert Progress().to_dict() == {"current": 0}
    assert Progress().percent is None


@pytest.mark.parametrize(
    "progress",
    [Progress(), FULL, Progress(current=0.1, total=0), Progress(rate=0.0, eta=0, fraction=0)],
    ids=stable,
)
def test_from_dict_is_the_inverse_of_to_dict(progress: Progress) -> None:
    """What to_dict gives, sent as JSON, is read back as the same value."""
    document = json.loads(json.dumps(progress.to_dict(), allow_nan=False))
    assert Progress.from_dict(document) == progress
    assert Progress.from_dict(document).to_dict() == document


def test_to_dict_leaves_out_what_is_empty() -> None:
    """Only fields that say something take room in a record."""
    assert Progress(current=3, total=0, step="read", step_number=1).to_dict() == {
        "current": 3,
        "total": 0,
        "step": "read",
        "step_number": 1,
    }


def test_unknown_keys_are_kept() -> None:
    """A field of a later release survives being read and written by this one."""
    document = {"current": 1, "lanes": [1, 2], "percent": 3}
    progress = Progress.from_dict(document)
    assert progress.extra == {"lanes": [1, 2], "percent": 3}
    assert progress.to_dict() == document


@pytest.mark.parametrize(
    "document", [None, [], "{}", 5, {1: 2}, {"current": 1, None: 2}], ids=stable
)
def test_from_dict_refuses_what_is_no_object(document: object) -> None:
    """A document that is no mapping with text keys is refused."""
    with pytest.raises(InvalidProgress) as caught:
        Progress.from_dict(document)
    assert caught.value.path == "progress"


@pytest.mark.parametrize("field", ["current", "total", "rate", "eta", "fraction"])
@pytest.mark.parametrize("value", NOT_AMOUNTS, ids=lambda value: str(type(value)))
def test_an_amount_is_a_finite_number_from_zero(field: str, value: object) -> None:
    """NaN, infinities, negatives, bools, text and numbers beyond float are refused by name."""
    with pytest.raises(InvalidProgress) as caught:
        Progress.from_dict({field: value})
    what, path, got, allowed = unpack(caught.value)
    assert (what, path, allowed) == ("not an amount", field, "a finite number >= 0")
    assert len(got) <= 80
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("current", None),
        ("fraction", 1.5),
        ("message", None),
        ("message", 5),
        ("message", b"text"),
        ("step", None),
        ("step", 5),
        ("step_number", -1),
        ("step_number", 1.0),
        ("step_number", True),
        ("step_number", None),
        ("step_count", "3"),
        ("step_count", -1),
        ("details", None),
        ("details", [1]),
        ("details", {1: 2}),
        ("details", {"x": math.nan}),
        ("details", {"x": {1, 2}}),
        ("details", {"x": b"bytes"}),
        ("details", {"x": "\ud800"}),
        ("details", {"x": object()}),
        ("extra", None),
        ("extra", {1: 2}),
    ],
)
def test_each_field_is_of_its_kind(field: str, value: object) -> None:
    """A field of a wrong type is refused, and the error names the field."""
    with pytest.raises(InvalidProgress) as caught:
        Progress(**{field: value})  # type: ignore[arg-type]
    assert caught.value.path == field


def test_details_may_be_neither_cyclic_nor_bottomless() -> None:
    """Details that JSON has no form for, by their shape, are refused like any other."""
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for details in (cyclic, {"deep": deep}):
        with pytest.raises(InvalidProgress):
            Progress(details=details)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Decimal(40), 40),
        (Decimal("0.5"), 0.5),
        (Fraction(6, 3), 2),
        (Fraction(1, 4), 0.25),
        (Foreign(7), 7),
        (Level.HIGH, 3),
        (2**80, 2**80),
        (1e308, 1e308),
        (5e-324, 5e-324),
        (3.0, 3.0),
    ],
    ids=stable,
)
def test_numbers_of_other_types_become_plain(value: Any, plain: float) -> None:
    """Decimal, Fraction and numbers of other libraries become int or float, as exact as those."""
    current = Progress(current=value).current
    assert current == plain
    assert type(current) is type(plain)


def test_a_lone_surrogate_in_a_text_is_replaced() -> None:
    """A file name that is not UTF-8 may stand in a message: it does not fail the task."""
    progress = Progress(message="reading caf\udce9.csv", step="\udce9")
    assert (progress.message, progress.step) == ("reading caf?.csv", "?")


def test_a_progress_does_not_change() -> None:
    """Neither by assignment, nor through what it was made from."""
    details = {"rows": [1]}
    progress = Progress(details=details)
    details["rows"].append(2)
    assert progress.details == {"rows": [1]}
    with pytest.raises(FrozenInstanceError):
        progress.current = 5  # type: ignore[misc]


def test_a_progress_is_hashed_pickled_and_copied() -> None:
    """It is a value."""
    assert {FULL: 1}[copy.deepcopy(FULL)] == 1
    assert pickle.loads(pickle.dumps(FULL)) == FULL


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        (Progress(current=5), None),
        (Progress(current=29, total=100), 29.0),
        (Progress(current=0, total=7), 0.0),
        (Progress(current=0, total=0), 100.0),
        (Progress(current=5, total=0), 100.0),
        (Progress(current=150, total=100), 100.0),
        (Progress(current=1e308, total=5e-324), 100.0),
        (Progress(current=1, total=2, fraction=0.29), 29.0),
        (Progress(fraction=0), 0.0),
    ],
    ids=stable,
)
def test_percent(progress: Progress, percent: float | None) -> None:
    """Percent is 0 to 100, over all steps if they are weighted, None while nothing is known."""
    assert progress.percent == percent


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(), "0"),
        (Progress(current=7, message="rows"), "7 rows"),
        (Progress(current=40, total=100), "40/100 (40 %)"),
        (Progress(current=999, total=1000), "999/1000 (99 %)"),
        (Progress(current=0.1 + 0.2, total=3.0), "0.3/3 (10 %)"),
        (Progress(current=1234567, total=2**60), "1234567/1152921504606846976 (0 %)"),
        (
            Progress(current=40, total=100, step="import", step_number=2, step_count=3),
            "step 2 of 3 'import': 40/100 (40 %)",
        ),
        (Progress(step="import", step_number=2, message="rows"), "step 2 'import': 0 rows"),
        (FULL, "step 2 of 3 'import': 40/100 (42 %) rows"),
        (Progress(message="a\nb\x1b[31m'c'"), "0 a\\nb\\x1b[31m'c'"),
        (Progress(step="a\nb", step_number=1), "step 1 'a\\nb': 0"),
    ],
)
def test_str_is_one_line(progress: Progress, text: str) -> None:
    """A progress prints as one line for a person, without control characters of the task's."""
    assert str(progress).replace('"', "'") == text


def test_meta_is_what_celery_progress_writes() -> None:
    """The meta has the keys of celery-progress and of the tutorials, and the details."""
    assert FULL.meta() == {
        "pending": False,
        "current": 40,
        "total": 100,
        "percent": 42.0,
        "description": "rows",
        "status": "rows",
        "bad": [1, None],
        "file": {"name": "a.csv"},
    }


def test_meta_of_an_unknown_total_is_numbers() -> None:
    """Readers calculate with total and percent, so these are 0 and not None."""
    meta = Progress(current=7, step="import", step_number=1).meta()
    assert (meta["total"], meta["percent"], meta["description"]) == (0, 0, "import")


def test_details_do_not_hide_the_numbers_in_meta() -> None:
    """A detail named like a number of the meta does not replace it."""
    meta = Progress(current=1, total=2, details={"current": "x", "percent": None}).meta()
    assert (meta["current"], meta["percent"]) == (1, 50.0)


# --- update and set ------------------------------------------------------------------------------


def test_update_adds() -> None:
    """update() adds one, or what it is given."""
    reporter = Reporter()
    reporter.update()
    reporter.update(41)
    reporter.update(0)
    assert reporter.current == reporter.snapshot().current == 42
    reporter.update(Decimal("0.5"))
    reporter.update(Foreign(2))
    assert reporter.current == 44.5


@pytest.mark.parametrize("n", [*NOT_AMOUNTS, None], ids=lambda value: str(type(value)))
def test_a_bad_update_changes_nothing(n: Any) -> None:
    """What is no amount is refused, and the count stays."""
    reporter = Reporter()
    reporter.update(5)
    with pytest.raises(InvalidProgress) as caught:
        reporter.update(n)
    assert caught.value.path == "n"
    assert reporter.current == 5


def test_a_sum_beyond_float_is_refused() -> None:
    """Two amounts whose sum is infinite do not make a snapshot fail later."""
    reporter = Reporter()
    reporter.update(1.7e308)
    with pytest.raises(InvalidProgress):
        reporter.update(1.7e308)
    assert reporter.snapshot().current == 1.7e308


def test_set_changes_what_is_given() -> None:
    """Any subset can be set; the rest stays; None makes the total unknown."""
    reporter = Reporter(clock=Clock())
    reporter.set(3, 10, "reading")
    assert (reporter.current, reporter.total, reporter.message) == (3, 10, "reading")
    reporter.set(message="writing")
    assert (reporter.current, reporter.total, reporter.message) == (3, 10, "writing")
    reporter.set(total=None)
    reporter.set(current=Fraction(8, 2))
    assert (reporter.current, reporter.total, reporter.message) == (4, None, "writing")
    reporter.update()
    assert reporter.snapshot() == Progress(current=5, message="writing")


def test_current_may_fall_and_exceed_the_total() -> None:
    """A task knows best: what it sets is kept as given."""
    reporter = Reporter()
    reporter.set(current=50, total=10)
    assert reporter.snapshot().percent == 100
    reporter.set(current=5)
    assert reporter.snapshot().percent == 50


def test_details_are_replaced_or_added_to() -> None:
    """details= stands in place of the ones before, keywords stand beside them."""
    reporter = Reporter()
    reporter.set(details={"file": "a.csv"})
    reporter.set(bad=1, step=2)
    reporter.set(bad=2)
    assert reporter.details == {"file": "a.csv", "bad": 2, "step": 2}
    reporter.set(details={"x": 1}, y=2)
    assert reporter.snapshot().details == {"x": 1, "y": 2}
    reporter.set(details={})
    assert reporter.details == {}


def test_details_are_taken_as_they_are_at_the_call() -> None:
    """What the task does with its dict later, or a reader with his, reaches nobody else."""
    reporter = Reporter()
    rows = {"bad": [1]}
    reporter.set(details=rows)
    rows["bad"].append(2)
    reporter.details["x"] = 1  # type: ignore[index]
    assert reporter.snapshot().details == {"bad": [1]}


@pytest.mark.parametrize(
    ("given", "path"),
    [
        *(({"current": value}, "current") for value in NOT_AMOUNTS),
        *(({"total": value}, "total") for value in NOT_AMOUNTS),
        ({"message": 5}, "message"),
        ({"details": [1]}, "details"),
        ({"details": {1: 2}}, "details"),
        ({"bad": {1, 2}}, "details"),
        ({"bad": math.nan}, "details"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_bad_set_changes_nothing(given: dict[str, Any], path: str) -> None:
    """If one of the values means nothing, none is set."""
    reporter = Reporter(clock=Clock())
    reporter.set(1, 10, "before", {"a": 1})
    before = reporter.snapshot()
    with pytest.raises(InvalidProgress) as caught:
        reporter.set(**{"current": 2, "total": 20, "message": "after", "b": 2, **given})
    assert caught.value.path == path
    assert reporter.snapshot() == before


# --- track ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", [range, lambda n: list(range(n)), lambda n: iter(Numbers(n))])
def test_an_exhausted_track_has_counted_every_item(
    length: int, kind: Callable[[int], Iterator[int]]
) -> None:
    """The count is exact, and stays after the loop, whatever the source and its length."""
    reporter = Reporter()
    assert list(track(reporter, kind(length))) == list(range(length))
    assert reporter.current == length
    assert reporter.snapshot().current == length


def test_the_item_in_hand_is_not_done() -> None:
    """In the body of the loop the items before are done, at every index."""
    reporter = Reporter()
    for number in track(reporter, range(3000)):
        assert reporter.current == number


def test_an_item_is_done_when_the_next_is_asked_for() -> None:
    """A source that is slow to give the next item does not hold back the one before."""
    reporter = Reporter()

    def slow() -> Iterator[int]:
        for number in range(1500):
            assert elsewhere(reporter.snapshot).current == number
            yield number

    assert sum(1 for _ in track(reporter, slow())) == reporter.current == 1500


@pytest.mark.parametrize("at", [0, 1, 1023, 1024, 1025, 3000])
def test_a_break_leaves_the_exact_count(at: int) -> None:
    """The item in whose body the loop is left is not counted; the generator is closed."""
    reporter, numbers = Reporter(), Numbers()
    for number in track(reporter, numbers):
        if number == at:
            break
    assert reporter.current == reporter.snapshot().current == at
    assert numbers.closed


@pytest.mark.parametrize("at", [0, 1, 1023, 1024, 1025, 3000])
def test_an_exception_in_the_body_leaves_the_exact_count(at: int) -> None:
    """As a break does; also while the exception, with its frames, is still held."""
    reporter, numbers = Reporter(), Numbers()

    def run() -> None:
        for number in track(reporter, numbers):
            if number == at:
                raise KeyError(number)

    with pytest.raises(KeyError) as held:
        run()
    assert reporter.current == at
    assert numbers.closed
    del held


@pytest.mark.parametrize("at", [0, 1, 1023, 1024, 1025, 3000])
def test_an_exception_in_the_source_leaves_the_exact_count(at: int) -> None:
    """All items that came are done: the next was asked for."""
    reporter = Reporter()
    with pytest.raises(KeyError):
        for _ in track(reporter, Numbers(fail_at=at)):
            pass
    assert reporter.current == at


def test_a_snapshot_sees_what_came_before_a_slow_item() -> None:
    """While one item takes long, another thread sees all that is done."""
    reporter, reached, go_on = Reporter(), threading.Event(), threading.Event()

    def work() -> None:
        for number in track(reporter, range(5000), "rows"):
            if number == 1234:
                reached.set()
                assert go_on.wait(DEADLINE)

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(DEADLINE)
    progress = reporter.snapshot()
    go_on.set()
    thread.join(DEADLINE)
    assert (progress.current, progress.total, progress.message) == (1234, 5000, "rows")
    assert reporter.snapshot().current == 5000


def test_snapshots_during_a_loop_never_fall_and_never_pass_it() -> None:
    """A count read while the loop runs on is one that was true."""
    reporter, over = Reporter(), threading.Event()
    seen: list[float] = []

    def look() -> None:
        while not over.is_set():
            seen.append(reporter.snapshot().current)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in track(reporter, range(300_000)):
        pass
    over.set()
    thread.join(DEADLINE)
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 300_000


def test_a_snapshot_is_true_at_any_instruction() -> None:
    """Wherever the task's thread is interrupted, a reader sees what was so just then."""
    reporter = Reporter()
    seen: list[Progress] = []
    with at_each_instruction(lambda: seen.append(reporter.snapshot())):
        for number in range(1, 6):
            reporter.set(current=number, total=10 * number)
        for _ in track(reporter, range(2050)):
            pass
        reporter.step("index", total=7)
        reporter.update(2.5)
    counts = [
        [progress.current for progress in seen if progress.total == total]
        for total in (None, 10, 20, 30, 40, 50, 2050, 7)
    ]
    assert [sorted(set(count)) for count in counts[:6]] == [[0], [1], [2], [3], [4], [5]]
    assert [sorted(set(count)) for count in counts[6:]] == [[0, 1023, 2047, 2050], [0, 2.5]]
    assert counts[6] == sorted(counts[6])
    assert sum(map(len, counts)) == len(seen)


@pytest.mark.parametrize(
    ("iterable", "total", "expected"),
    [
        ([1, 2, 3], None, 3),
        ({"a": 1}, None, 1),
        (range(10**30), None, None),
        (iter([1, 2, 3]), None, 3),
        ((n for n in range(3)), None, None),
        ((n for n in range(3)), 3, 3),
        ([1, 2, 3], 2, 2),
        ([1, 2, 3], Decimal(30), 30),
        ([], None, None),
    ],
    ids=stable,
)
def test_the_total_is_given_or_the_length(iterable: Any, total: Any, expected: Any) -> None:
    """A total that is given wins, then the length, then the hint of one, else it is unknown."""
    reporter = Reporter()
    for _ in track(reporter, iterable, total=total):
        assert reporter.total == expected
        break


def test_an_empty_track_is_complete() -> None:
    """Nothing to do is 100 percent."""
    reporter = Reporter()
    assert list(track(reporter, [])) == []
    assert reporter.snapshot().percent == 100


def test_a_track_begins_with_its_first_item() -> None:
    """To make a track shows nothing yet."""
    reporter = Reporter()
    reporter.set(5, 9, "before")
    rows = track(reporter, range(3), "rows")
    assert (reporter.current, reporter.total, reporter.message) == (5, 9, "before")
    next(rows)
    assert (reporter.current, reporter.total, reporter.message) == (0, 3, "rows")


def test_each_track_begins_again() -> None:
    """Tracks after one another start at 0; a message stays until there is another."""
    reporter = Reporter()
    list(track(reporter, range(5), "first"))
    for number in track(reporter, range(3)):
        assert (reporter.current, reporter.total, reporter.message) == (number, 3, "first")
    assert reporter.current == 3


def test_the_innermost_track_shows() -> None:
    """While tracks are nested the inner one shows, and afterwards the outer again."""
    reporter = Reporter()
    for outer in track(reporter, range(3), "files"):
        assert (reporter.current, reporter.total, reporter.message) == (outer, 3, "files")
        for inner in track(reporter, range(2), "rows"):
            assert (reporter.current, reporter.total, reporter.message) == (inner, 2, "rows")
            reporter.set(file=outer)
        assert (reporter.current, reporter.total, reporter.message) == (outer, 3, "files")
    assert (reporter.current, reporter.total, reporter.message) == (3, 3, "files")
    assert reporter.details == {"file": 2}


@pytest.mark.parametrize("held", [False, True])
def test_a_nested_loop_that_fails_leaves_the_count_of_the_outer(*, held: bool) -> None:
    """Once the run is closed that is so also where frames still hold the inner iterator."""
    reporter = Reporter()

    def run() -> None:
        for outer in track(reporter, range(10)):
            middle = track(reporter, range(3))
            next(middle)
            inner = track(reporter, range(10))
            for number in inner if held else track(reporter, range(10)):
                if (outer, number) == (4, 7):
                    raise KeyError
            list(middle)

    with pytest.raises(KeyError) as caught:
        run()
    reporter.close()
    assert (reporter.current, reporter.total) == (4, 10)
    del caught


def test_tracks_that_overlap_end_in_any_order() -> None:
    """The inner one shows until its end, then the outer one's count, which was final before."""
    reporter = Reporter()
    first, second = track(reporter, range(5)), track(reporter, range(3))
    next(first)
    next(second)
    assert list(first) == [1, 2, 3, 4]
    assert (reporter.current, reporter.total) == (0, 3)
    assert list(second) == [1, 2]
    assert (reporter.current, reporter.total) == (5, 5)
    list(track(reporter, range(2)))
    assert (reporter.current, reporter.total) == (2, 2)


def test_update_and_set_in_a_tracked_loop() -> None:
    """update() adds to the items; set() moves the count, and the items go on from there."""
    reporter = Reporter()
    for number in track(reporter, range(10)):
        if number == 0:
            reporter.update(100)
        assert reporter.current == 100 + number
    reporter = Reporter(clock=Clock())
    for number in track(reporter, range(10)):
        if number == 5:
            reporter.set(current=50, total=100, message="half")
    assert reporter.snapshot() == Progress(current=55, total=100, message="half")


def test_a_loop_may_be_left_and_taken_up_again() -> None:
    """An iterator that is held goes on after a break, and so does its count."""
    reporter = Reporter()
    rows = track(reporter, range(10))
    for number in rows:
        if number == 3:
            break
    assert reporter.current == 3
    assert list(rows) == [4, 5, 6, 7, 8, 9]
    assert reporter.current == 10


def test_the_loop_alone_holds_the_source() -> None:
    """Neither the reporter nor a cycle keeps what a loop that was left iterated over."""
    reporter, numbers = Reporter(), Numbers()
    rows = track(reporter, numbers)
    next(rows)
    gc.disable()
    try:
        del rows
        assert numbers.closed
    finally:
        gc.enable()


def test_what_a_signal_raises_leaves_the_loop_at_any_instruction() -> None:
    """A soft time limit is never swallowed, and the reporter can be used after it."""
    for moment in itertools.count(1):
        reporter, moments = Reporter(), iter(range(1, moment + 1))

        def signal(moment: int = moment, moments: Iterator[int] = moments) -> None:
            if next(moments, 0) == moment:
                raise KeyError("soft time limit")

        try:
            with at_each_instruction(signal):
                for _ in track(reporter, range(3)):
                    pass
        except KeyError:
            reporter.close()
            assert reporter.snapshot().current in range(4)
            assert list(track(reporter, range(5))) == [0, 1, 2, 3, 4]
            assert (reporter.current, reporter.total) == (5, 5)
        else:
            assert next(moments, 0), "swallowed"
            break


@pytest.mark.parametrize("iterable", [5, None, object(), len], ids=stable)
def test_what_is_not_iterable_is_refused_as_python_does(iterable: Any) -> None:
    """A TypeError, at the call."""
    with pytest.raises(TypeError, match="not iterable"):
        track(Reporter(), iterable)


def test_an_asynchronous_iterable_is_refused() -> None:
    """The error says what to do in async code instead."""

    async def rows() -> Any:
        yield 1

    with pytest.raises(InvalidInput, match=r"asynchronous iterable at iterable; .*update\(\)"):
        track(Reporter(), rows())


@pytest.mark.parametrize("total", NOT_AMOUNTS, ids=lambda value: str(type(value)))
def test_a_bad_total_of_a_track_is_refused_at_the_call(total: Any) -> None:
    """Before the source is asked for anything."""
    numbers = Numbers()
    with pytest.raises(InvalidProgress) as caught:
        track(Reporter(), numbers, total=total)
    assert caught.value.path == "total"
    assert numbers.asked == 0


def test_a_bad_message_of_a_track_is_refused_at_the_call() -> None:
    """A message is text."""
    with pytest.raises(InvalidProgress) as caught:
        track(Reporter(), [1], 5)  # type: ignore[arg-type]
    assert caught.value.path == "message"


# --- stop and close ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 5, 1022, 1023, 1024, 1025, 2048, 3000])
def test_stop_raises_at_the_next_item(at: int) -> None:
    """A loop ends before it asks for another item; the one that was in the body is counted."""
    reporter, numbers, stopped = Reporter(), Numbers(), Stopped("taken over")
    rows = track(reporter, numbers)

    def body(number: int) -> None:
        if number == at:
            elsewhere(lambda: reporter.stop(stopped))
            assert elsewhere(reporter.snapshot).current == at

    with pytest.raises(Stopped) as caught:
        each(rows, body)
    assert caught.value is stopped
    assert reporter.current == reporter.snapshot().current == numbers.asked == at + 1
    assert numbers.closed


def test_stop_is_seen_in_the_middle_of_a_slow_loop() -> None:
    """The task's thread is the one that raises, at its very next item."""
    reporter, reached, go_on = Reporter(), threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        try:
            for number in track(reporter, range(10_000)):
                seen.append(number)
                if number == 700:
                    reached.set()
                    assert go_on.wait(DEADLINE)
        except Stopped:
            seen.append("stopped")

    thread = threading.Thread(target=work)
    thread.start()
    assert reached.wait(DEADLINE)
    reporter.stop(Stopped())
    go_on.set()
    thread.join(DEADLINE)
    assert seen == [*range(701), "stopped"]
    assert reporter.current == 701


def test_stop_at_any_instruction_leaves_the_exact_count() -> None:
    """Wherever the code is when another thread stops it, no item more is given, and none lost."""

    def stop_at(moment: int) -> tuple[float, int, int | None]:
        """The count, how many items the loop was given, and how many when it was stopped."""
        reporter, left, given, given_then = Reporter(), moment, 0, None

        def stop() -> None:
            nonlocal left, given_then
            left -= 1
            if not left:
                given_then = given
                reporter.stop(Stopped())

        with contextlib.suppress(Stopped), at_each_instruction(stop):
            for _ in track(reporter, range(1026)):
                given += 1
        return reporter.current, given, given_then

    seen = set()
    for moment in itertools.count(1):
        current, given, given_then = stop_at(moment)
        if given_then is None:
            break
        assert current == given == given_then
        seen.add(given)
    assert seen == {0, 1024, 1026}


def test_a_loop_goes_on_exactly_while_it_is_being_stopped() -> None:
    """Whatever instruction stop() is at, an item given in between is counted, once."""
    reporter, given = Reporter(), 0
    rows = track(reporter, range(5000))

    def go_on() -> None:
        nonlocal given
        with contextlib.suppress(Stopped, StopIteration):
            next(rows)
            given += 1

    go_on()
    with at_each_instruction(go_on):
        reporter.stop(Stopped())
    go_on()
    assert reporter.current == given > 1


def test_a_snapshot_is_true_while_the_loop_is_being_stopped() -> None:
    """Whatever instruction a reader is at when a stop comes, it counts what is done."""
    for moment in itertools.count(1):
        reporter = Reporter()
        rows = track(reporter, range(5000))
        assert list(itertools.islice(rows, 5)) == [0, 1, 2, 3, 4]
        calls = itertools.chain([None] * (moment - 1), [Stopped()])

        def stop(reporter: Reporter = reporter, calls: Iterator[Any] = calls) -> None:
            if stopped := next(calls, None):
                reporter.stop(stopped)

        with at_each_instruction(stop):
            progress = reporter.snapshot()
        assert progress.current == 4
        if next(calls, None):
            break


def test_stop_of_a_loop_that_runs_freely_leaves_the_exact_count() -> None:
    """Between two items no code of Python runs, and yet none is lost or counted twice."""
    for _ in range(30):
        reporter, running = Reporter(), threading.Event()

        def stop(reporter: Reporter = reporter, running: threading.Event = running) -> None:
            running.wait(DEADLINE)
            reporter.stop(Stopped())

        thread = threading.Thread(target=stop)
        thread.start()
        done = 0
        try:
            for number in track(reporter, range(10**9)):
                if number == 500:
                    running.set()
                done = number + 1
        except Stopped:
            pass
        thread.join(DEADLINE)
        assert reporter.current == done < 10**9


def test_stop_reaches_every_call_of_the_task() -> None:
    """Each call raises the same exception, again and again, and changes nothing."""
    reporter, stopped = Reporter(), Stopped()
    reporter.update(5)
    reporter.stop(stopped)
    reporter.stop(KeyError("too late"))
    calls: tuple[Callable[[], Any], ...] = (
        reporter.update,
        lambda: reporter.update(2.5),
        lambda: reporter.set(current=7),
        lambda: reporter.steps("a", "b"),
        lambda: reporter.step("a"),
        lambda: next(track(reporter, [1])),
    )
    for call in calls * 2:
        with pytest.raises(Stopped) as caught:
            call()
        assert caught.value is stopped
        assert len(caught.traceback) <= 5
    assert reporter.snapshot().current == 5


def test_a_nested_loop_stops_within() -> None:
    """Stop is seen by the inner loop, and both generators are closed."""
    reporter, outer, inner = Reporter(), Numbers(), Numbers()

    def run() -> None:
        for number in track(reporter, outer):
            for other in track(reporter, inner if number == 3 else range(5)):
                if other == 10:
                    reporter.stop(Stopped())

    with pytest.raises(Stopped):
        run()
    assert (inner.asked, outer.asked) == (11, 4)
    assert outer.closed
    assert inner.closed
    assert reporter.current == 3


def test_only_an_exception_can_stop() -> None:
    """stop() takes an instance; anything else is a TypeError and stops nothing."""
    reporter = Reporter()
    for wrong in (None, "stop", KeyError):
        with pytest.raises(TypeError):
            reporter.stop(wrong)  # type: ignore[arg-type]
    reporter.update()


def test_close_makes_the_count_final_and_closes_what_is_open() -> None:
    """A loop that was left while its iterator or generator is held is over at the run's end."""
    reporter, first, second = Reporter(), Numbers(), Numbers()
    held_source = iter(first)
    for number in track(reporter, held_source):
        if number == 3:
            break
    held_loop = track(reporter, second)
    for number in held_loop:
        if number == 5:
            break
    assert not first.closed
    assert not second.closed
    reporter.close()
    assert first.closed
    assert second.closed
    assert reporter.current == 5
    assert list(held_loop) == []
    reporter.close()
    assert reporter.current == 5


def test_what_a_generator_reports_while_it_is_closed_is_kept() -> None:
    """The clean-up of a generator may still set a message and a count."""
    reporter = Reporter()

    def rows() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            reporter.set(message="tidied up")

    held = rows()
    next(track(reporter, held))
    reporter.close()
    assert reporter.snapshot().message == "tidied up"


def test_a_generator_that_fails_to_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its error does not replace the run's outcome, and the others are closed all the same."""
    reporter, other = Reporter(), Numbers()

    def rows() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            raise KeyError("clean-up")

    held = [track(reporter, rows()), track(reporter, other)]
    for iterator in held:
        next(iterator)
    with caplog.at_level(logging.WARNING, "celery_statekit.reporter"):
        reporter.close()
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert other.closed


def test_a_stop_met_in_a_clean_up_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A generator whose clean-up reports progress meets the same stop; that is no error."""
    reporter = Reporter()

    def rows() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            reporter.set(message="tidying up")

    with pytest.raises(Stopped):
        each(track(reporter, rows()), lambda _: reporter.stop(Stopped()))
    assert caplog.records == []


# --- steps ---------------------------------------------------------------------------------------


def test_declared_steps_know_how_many_they_are() -> None:
    """Step 2 of 3, and the whole by the weights."""
    reporter = Reporter(clock=Clock())
    reporter.steps({"read": 1, "import": Decimal(8), "index": 1})
    assert reporter.snapshot().to_dict() == {"current": 0, "step_count": 3, "fraction": 0}
    reporter.step("read")
    assert reporter.snapshot().percent == 0
    reporter.step("import", total=100, message="rows")
    reporter.update(40)
    progress = reporter.snapshot()
    assert str(progress) == "step 2 of 3 'import': 40/100 (42 %) rows"
    assert (progress.step, progress.step_number, progress.step_count) == ("import", 2, 3)
    reporter.step("index")
    assert (reporter.current, reporter.total, reporter.message) == (0, None, "")
    assert reporter.snapshot().percent == 90


def test_steps_by_name_weigh_the_same() -> None:
    """Names alone are a plan of equal parts."""
    reporter = Reporter()
    reporter.steps("a", "b", "c", "d")
    reporter.step("c", total=2)
    reporter.update()
    assert reporter.snapshot().percent == 62.5


def test_steps_that_were_not_declared_have_no_count() -> None:
    """Without a plan the percent is that of the running step."""
    reporter = Reporter()
    reporter.step("read", total=4)
    reporter.update()
    progress = reporter.snapshot()
    assert (progress.step_number, progress.step_count, progress.fraction) == (1, None, None)
    assert progress.percent == 25
    reporter.step("import", weight=8)
    assert str(reporter.snapshot()) == "step 2 'import': 0"


def test_a_step_beside_the_plan_comes_after_the_running_one() -> None:
    """The declared ones can still follow; the percent does not fall."""
    reporter = Reporter()
    reporter.steps("a", "b")
    reporter.step("a", total=1)
    reporter.update()
    assert reporter.snapshot().percent == 50
    reporter.step("extra", weight=8)
    progress = reporter.snapshot()
    assert (progress.step_number, progress.step_count, progress.percent) == (2, 3, 50)
    reporter.step("b")
    assert reporter.snapshot().step_number == 3
    assert reporter.snapshot().percent == 90


def test_a_weight_given_late_replaces_the_declared_one() -> None:
    """A task that learns how long a step takes says so when it begins."""
    reporter = Reporter()
    reporter.steps("a", "b")
    reporter.step("b", weight=3, total=2)
    assert reporter.snapshot().percent == 25
    reporter.update()
    assert reporter.snapshot().percent == 62.5


def test_tracks_in_a_step_count_towards_it() -> None:
    """With a total for the step, tracks go on from one another."""
    reporter = Reporter()
    reporter.steps({"import": 1, "index": 1})
    reporter.step("import", total=100)
    list(track(reporter, range(50)))
    assert (reporter.current, reporter.total) == (50, 100)
    assert reporter.snapshot().percent == 25
    list(track(reporter, (n for n in range(50))))
    assert (reporter.current, reporter.total) == (100, 100)
    reporter.step("index")
    for number in track(reporter, range(8)):
        assert (reporter.current, reporter.total) == (number, 8)
    assert reporter.snapshot().percent == 100


def test_tracks_in_a_step_without_a_total_add_theirs() -> None:
    """The total is what was done before and what the track has to do."""
    reporter = Reporter()
    reporter.step("import")
    list(track(reporter, range(5)))
    for number in track(reporter, range(3)):
        assert (reporter.current, reporter.total) == (5 + number, 8)
    next(track(reporter, iter(Numbers())))
    assert reporter.total is None


def test_a_nested_track_does_not_move_the_whole() -> None:
    """Over all steps the outer track of the running step counts."""
    reporter = Reporter()
    reporter.steps("a", "b")
    reporter.step("a")
    for outer in track(reporter, range(4)):
        for inner in track(reporter, range(10)):
            assert (reporter.current, reporter.total) == (inner, 10)
            assert reporter.snapshot().percent == outer * 12.5
            assert reporter.snapshot().eta is None
    assert reporter.snapshot().percent == 50


def test_a_step_in_a_tracked_loop_takes_over() -> None:
    """From the step on, the loop around it counts no more; it can still be stopped."""
    reporter = Reporter()

    def run() -> None:
        for name in track(reporter, ["a", "b", "c"]):
            reporter.step(name, total=2)
            reporter.update(2)
            number = "abc".index(name) + 1
            assert str(reporter.snapshot()) == f"step {number} {name!r}: 2/2 (100 %)"
            if name == "b":
                reporter.stop(Stopped())

    with pytest.raises(Stopped):
        run()
    assert (reporter.current, reporter.total) == (2, 2)


@pytest.mark.parametrize(
    ("steps", "path"),
    [
        ((), "steps"),
        (({},), "steps"),
        (("a", "a"), "steps"),
        (("",), "name"),
        ((5,), "name"),
        (({"a": 1}, "b"), "name"),
        (({5: 1},), "name"),
        *((({"a": 1, "b": weight},), "steps['b']") for weight in (*NOT_AMOUNTS, 0, 0.0, None)),
        (({"a": 1e308, "b": 1e308},), "steps"),
    ],
    ids=stable,
)
def test_a_bad_plan_is_refused(steps: Any, path: str) -> None:
    """Names are non-empty text, each once; weights are finite and over 0."""
    reporter = Reporter(clock=Clock())
    with pytest.raises(InvalidProgress) as caught:
        reporter.steps(*steps)
    assert caught.value.path == path
    assert reporter.snapshot() == Progress()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"name": "a"}, "name"),
        ({"name": "b"}, "name"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        *(({"weight": weight}, "weight") for weight in (*NOT_AMOUNTS, 0)),
        *(({"total": total}, "total") for total in NOT_AMOUNTS),
        ({"message": None}, "message"),
        ({"weight": 1.7e308}, "weight"),
    ],
    ids=stable,
)
def test_a_bad_step_changes_nothing(given: dict[str, Any], path: str) -> None:
    """Going back to a step that has begun, a bad weight, total or text leave all as it is."""
    reporter = Reporter(clock=Clock())
    reporter.steps({"a": 1, "b": 1, "c": 1.7e308})
    reporter.step("a")
    reporter.step("b", total=10)
    reporter.update(3)
    before = reporter.snapshot()
    with pytest.raises(InvalidProgress) as caught:
        reporter.step(**{"name": "d", **given})
    assert caught.value.path == path
    assert reporter.snapshot() == before
    reporter.step("c")


def test_the_refusal_of_a_step_says_which_may_come() -> None:
    """Going back names the steps that are left."""
    reporter = Reporter()
    reporter.steps("a", "b", "c")
    reporter.step("b")
    with pytest.raises(InvalidProgress) as caught:
        reporter.step("a")
    assert unpack(caught.value) == ("a step that has begun already", "name", "'a'", "'c'")


def test_a_plan_comes_before_the_first_step() -> None:
    """It may be declared anew until then, not after."""
    reporter = Reporter()
    reporter.steps("a")
    reporter.steps("a", "b")
    reporter.step("a")
    with pytest.raises(InvalidProgress):
        reporter.steps("c")
    assert reporter.snapshot().step_count == 2


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    acts=st.lists(
        st.tuples(
            st.sampled_from(["update", "track", "step", "aside", "total", "back"]),
            st.integers(0, 20),
        ),
        max_size=30,
    ),
)
def test_the_whole_never_falls(weights: list[float], acts: list[tuple[str, int]]) -> None:
    """Whatever the task does within a plan, its percent only rises, and stays within 0 to 100."""
    reporter = Reporter()
    reporter.steps({str(number): weight for number, weight in enumerate(weights)})
    left, aside = [str(number) for number in range(len(weights))], 0
    percents = [0.0]
    for act, n in acts:
        if act == "update":
            reporter.update(n)
        elif act == "track":
            percents.extend(reporter.snapshot().percent or 0 for _ in track(reporter, range(n)))
        elif act == "step" and left:
            reporter.step(left.pop(0), total=n or None)
        elif act == "aside":
            aside += 1
            reporter.step(f"aside {aside}", weight=n + 1)
        elif act == "total":
            reporter.set(total=n or None)
        elif act == "back":
            reporter.set(current=0)
        percents.append(reporter.snapshot().percent or 0)
    assert percents == sorted(percents)
    assert percents[-1] <= 100


# --- rate and ETA --------------------------------------------------------------------------------


def test_rate_and_eta_are_the_mean_at_first() -> None:
    """Until ten seconds have passed, the rate is taken from the beginning."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    reporter.set(total=100)
    assert reporter.snapshot().rate is None
    clock.now += 4
    reporter.update(20)
    progress = reporter.snapshot()
    assert (progress.rate, progress.eta) == (5.0, 16.0)


def test_the_rate_follows_the_last_ten_seconds() -> None:
    """A loop that becomes slower shows it, once the quick part is out of the window."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    reporter.set(total=10_000)
    rates = []
    for speed in (100, 10):
        for _ in range(120):
            clock.now += 0.25
            reporter.update(speed // 4 if speed == 100 else 2.5)
            rates.append(reporter.snapshot().rate)
    assert rates[119] == pytest.approx(100)
    assert 10 < rates[140] < 100
    assert rates[-1] == pytest.approx(10)
    assert reporter.snapshot().eta == pytest.approx((10_000 - 3300) / 10)


def test_the_rate_of_slow_items_reaches_back_to_the_last() -> None:
    """One item in 30 seconds is no standstill: the rate falls slowly, and there is an ETA."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    reporter.set(total=10)
    for _ in range(3):
        for _ in range(30):
            clock.now += 1
            reporter.snapshot()
        reporter.update()
        assert reporter.snapshot().rate == pytest.approx(1 / 30)
    clock.now += 30
    assert reporter.snapshot().rate == pytest.approx(1 / 60)
    assert reporter.snapshot().eta == pytest.approx(7 * 60)


def test_a_run_that_begins_late_is_not_taken_for_slow() -> None:
    """Time before the first item leaves the window with it."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    clock.now += 600
    for _ in range(20):
        clock.now += 0.5
        reporter.update(5)
        reporter.snapshot()
    assert reporter.snapshot().rate == pytest.approx(10)


def test_a_standstill_from_the_beginning_has_no_eta() -> None:
    """Nothing done is a rate of 0."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    reporter.set(total=5)
    clock.now += 3
    assert (reporter.snapshot().rate, reporter.snapshot().eta) == (0, None)


def test_the_rate_begins_anew_with_each_track_and_step() -> None:
    """What came before does not speak for what is different work."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    for _ in track(reporter, range(100)):
        clock.now += 0.01
        reporter.snapshot()
    for number in track(reporter, range(10)):
        clock.now += 1
        if number:
            assert reporter.snapshot().rate == pytest.approx(number / (number + 1))
    reporter.step("index")
    assert reporter.snapshot().rate is None


def test_a_count_that_falls_begins_the_rate_anew() -> None:
    """The rate is never negative."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    for current in (10, 20, 5):
        clock.now += 1
        reporter.set(current=current)
        assert (reporter.snapshot().rate or 0) >= 0
    clock.now += 1
    reporter.set(current=7)
    assert reporter.snapshot().rate == 2


def test_the_eta_of_a_plan_is_that_of_all_steps() -> None:
    """A step that takes 10 s for a part of 1 in 10 leaves nine such parts."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    reporter.steps({"read": 1, "import": 9})
    reporter.step("read", total=10)
    clock.now += 5
    reporter.update(5)
    assert reporter.snapshot().eta == pytest.approx(95)


def test_without_a_total_there_is_a_rate_and_no_eta() -> None:
    """An unknown total has no end to reckon with."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    clock.now += 2
    reporter.update(4)
    assert (reporter.snapshot().rate, reporter.snapshot().eta) == (2, None)


def test_the_eta_at_the_end_is_zero() -> None:
    """Also where more was done than was to do."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    clock.now += 2
    reporter.set(current=12, total=10)
    assert reporter.snapshot().eta == 0


def test_extreme_amounts_still_give_a_snapshot() -> None:
    """A rate or ETA beyond float is unknown, and no error in the thread that carries it away."""
    clock = Clock()
    reporter = Reporter(clock=clock)
    clock.now += 1e-9
    reporter.set(current=1e308, total=1.7e308)
    assert reporter.snapshot().rate is None
    reporter = Reporter(clock=clock)
    clock.now += 1e3
    reporter.set(current=1, total=1.7e308)
    assert reporter.snapshot().rate == pytest.approx(1e-3)
    assert reporter.snapshot().eta is None
