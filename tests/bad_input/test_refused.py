"""Bad input: each case of ``refused.json`` gets the error that it names, and changes nothing.

Cases stand under the door at which they come in (``doors.py``). A case has ``is``, its name;
``input``, in JSON and words (``words.py``); ``error``, a class of ``celery_statekit.errors``; where
it matters ``path``, ``what`` and ``got``, and a part of ``allowed``; and a ``secret`` that nobody
may be told.
"""

from __future__ import annotations

import json
import pickle
import traceback
from pathlib import Path
from typing import Any, Final

import pytest

from celery_statekit import errors
from celery_statekit.errors import InvalidInput, StatekitError

from .doors import DOORS, Place, State, Try
from .words import hooked, made_of, resolved

CASES: Final[dict[str, list[dict[str, Any]]]] = json.loads(
    Path(__file__).with_name("refused.json").read_text()
)
#: Fewer cases than these, and some were lost.
LEAST: Final = 150
#: Longest sentence of an error, in characters.
LINE: Final = 1000


def _tries() -> list[Any]:
    return [
        pytest.param(store, door, case, id=f"{door}: {case['is']} ({store})")
        for door, cases in CASES.items()
        for case in cases
        for store in (("memory", "sqlite") if DOORS[door].stores else ("memory",))
    ]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("place", "door", "case"), _tries(), indirect=["place"])
def test_refused(place: Place, door: str, case: dict[str, Any]) -> None:
    """It raises the error named, at the path named; all else stays as it was."""
    given = resolved(case["input"])
    made = made_of(given)
    raised: list[StatekitError] = []

    def check(attempt: Try, state: State) -> None:
        before = state()
        with pytest.raises(StatekitError) as refusal:
            attempt(given)
        raised.append(refusal.value)
        assert state() == before
        assert made_of(given) == made

    hooked.clear()
    DOORS[door].knock(place, check)

    assert not hooked
    _check_error(raised[0], case)


def _check_error(error: Any, case: dict[str, Any]) -> None:
    assert type(error) is getattr(errors, case["error"])
    for fact in ("path", "got", "what"):
        assert case.get(fact, getattr(error, fact, None)) == getattr(error, fact, None)
    assert case.get("allowed", "") in str(getattr(error, "allowed", ""))
    _check_sentence(error)
    _check_copies(error)
    if "secret" in case:
        told = "".join(traceback.format_exception(type(error), error, None))
        assert case["secret"] not in f"{told} {error!r} {error.args}"


def _check_sentence(error: Any) -> None:
    sentence = str(error)

    assert sentence.isprintable()
    assert len(sentence) < LINE
    if isinstance(error, InvalidInput):
        assert isinstance(error, ValueError)
        assert len(error.got) <= 80
        said = f"{error.what} at {error.path}; got {error.got}; allowed: {error.allowed}"
        assert sentence == said
        assert all((error.what, error.path, error.got, error.allowed))


def _check_copies(error: StatekitError) -> None:
    for copied in (type(error)(*error.args), pickle.loads(pickle.dumps(error))):
        assert str(copied) == str(error)
        assert {name: str(value) for name, value in vars(copied).items()} == {
            name: str(value) for name, value in vars(error).items()
        }


def test_there_are_enough_cases() -> None:
    """There are at least 150, each said once."""
    said = [(door, case["is"]) for door, cases in CASES.items() for case in cases]

    assert len(said) >= LEAST
    assert len(set(said)) == len(said)


def test_every_door_is_tried() -> None:
    """Each way in has a case, and each case a way in."""
    assert {door for door, cases in CASES.items() if cases} == set(DOORS)


def test_every_kind_of_bad_input_is_met() -> None:
    """Each class of InvalidInput is the error of some case."""
    kinds = {cls.__name__ for cls in (InvalidInput, *InvalidInput.__subclasses__())}

    assert kinds <= {case["error"] for cases in CASES.values() for case in cases}


def _facts() -> dict[type[StatekitError], tuple[Any, ...]]:
    """Facts to make each error of the tree from."""
    wide = ("x" * 20_000, "line\nbreak \x1b[31m", "y" * 20_000)
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    made = {
        errors.IllegalTransition: ("task", "id", "A", "B", ("C",) * 2000, "because\n" * 2000),
        errors.StaleAttempt: ("task", "id", 1, 2),
        errors.AlreadyRunning: ("task", "id", 1, 2, "celery@a\n:1", 0.5),
        errors.TaskLost: ("task", "id", 1, "celery@a\n:1" * 2000),
        errors.PoisonTask: ("task", "id", 1, "celery@a\n:1" * 2000, 3),
        errors.Cancelled: ("task", "id", "because\n" * 2000, "ada"),
        errors.ContentionTimeout: ("key", 3, 0.5),
        errors.LeaseLost: ("key", 0.5),
        errors.UnknownTask: ("id", 0.5),
        errors.WatchTimeout: ("id", 0.5, "STARTED"),
        errors.StateNotReached: ("id", ("A",) * 2000, "FAILURE"),
        errors.ReportedFailure: ({"x": "y" * 20_000},),
        errors.SetupTooLate: ("shop", ("a",) * 2000),
    }
    return {
        kind: made.get(
            kind, (wide[0], wide[1], "got", wide[2]) if issubclass(kind, InvalidInput) else wide
        )[: len(kind._facts) or None]
        for kind in kinds
        if issubclass(kind, StatekitError) and kind._facts
    }


@pytest.mark.parametrize("kind", list(_facts()), ids=lambda kind: kind.__name__)
def test_every_error_is_one_line_and_survives_being_sent(kind: type[StatekitError]) -> None:
    """Whatever its facts, and after pickle and Celery's JSON too."""
    error = kind(*_facts()[kind])

    _check_sentence(error)
    assert all(getattr(error, fact) for fact in kind._facts)
    for copied in (kind(*error.args), pickle.loads(pickle.dumps(error))):
        assert copied.args == error.args
        assert str(copied) == str(error)
    assert str(kind(*json.loads(json.dumps(error.args)))) == str(error)
