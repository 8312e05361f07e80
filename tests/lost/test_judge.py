"""What the trials are judged by sees what is wrong."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
from soak.lost.__main__ import main, row
from soak.lost.judge import judge
from soak.lost.scenarios import SCENARIOS, Outcome
from soak.lost.yard import Trial

from celery_statekit import TaskState

RIGHT = "PENDING:0 STARTED:1 SUCCESS:1"
TWO_RUNS = "PENDING:0 STARTED:1 LOST:1 STARTED:2 SUCCESS:2"


def judged(moves, *, seen=(), celery="SUCCESS", books=(), end="SUCCESS", runs=1, final=False):
    """What is said of one trial, a chain, that went so."""
    history = []
    for move in moves.split():
        state, _, attempt = move.partition(":")
        history.append(SimpleNamespace(to_state=state, attempt=int(attempt)))
    last = history[-1].to_state
    result = SimpleNamespace(
        id="1",
        history=lambda limit: history,
        task_state=TaskState(id="1", state=last, final=final or last in ("SUCCESS", "FAILURE")),
        backend=SimpleNamespace(get_task_meta=lambda id: {"status": celery}),
    )
    books = {"begun": ["t 1"], "after": ["t"], **dict(books)}
    yard = SimpleNamespace(book=lambda book: Counter(books.get(book, [])))
    trial = Trial("t", "chain", result, result, seen=[*seen])
    return {fault.partition(":")[0] for fault in judge(yard, [trial], end=end, runs=runs)}


def test_what_is_right():
    """Nothing is said of it."""
    assert judged(RIGHT) == set()
    assert judged(TWO_RUNS, runs=2, books={"begun": ["t 1", "t 2"]}) == set()


@pytest.mark.parametrize(
    ("rule", "went"),
    [
        ("task lost", {"moves": "PENDING:0 STARTED:1 LOST:1"}),
        ("attempt fell", {"moves": "STARTED:1 LOST:1 STARTED:2 PACKING:1 SUCCESS:2"}),
        ("doubled end", {"moves": "STARTED:1 SUCCESS:1 SUCCESS:1"}),
        ("doubled end", {"moves": "STARTED:1 SUCCESS:1 PACKING:1", "final": True}),
        ("wrong end", {"moves": "STARTED:1 FAILURE:1"}),
        ("two truths", {"moves": RIGHT, "celery": "FAILURE"}),
        ("one number, two runs", {"moves": RIGHT, "books": {"begun": ["t 1", "t 1"]}}),
        ("runs", {"moves": TWO_RUNS, "books": {"begun": ["t 1", "t 2"]}}),
        ("said to be lost", {"moves": RIGHT, "seen": ["STARTED", "LOST", "SUCCESS"]}),
        ("said to be lost", {"moves": "STARTED:1 LOST:1 PACKING:1 SUCCESS:1"}),
        ("doubled step", {"moves": RIGHT, "books": {"after": ["t", "t"]}}),
        ("step lost", {"moves": RIGHT, "books": {"after": []}}),
        ("doubled step", {"moves": RIGHT, "books": {"failed": ["t"]}}),
    ],
)
def test_what_is_wrong(rule, went):
    """It is said by its rule."""
    assert rule in judged(**went)


def test_the_table():
    """Lost and doubled are counted apart, and are named."""
    faults = ["task lost: a", "step lost: b", "doubled end: c", "doubled step: d", "runs: e"]
    line, *named = row(Outcome("worker killed", 4, 3, 2, [1.0, 2.0, 4.0], faults)).splitlines()
    assert line == "| worker killed | 4 | 3 | 2 | 2.0 | 4.0 | 2 | 1 | 1 | 1 |"
    assert [name.strip() for name in named] == faults


@pytest.mark.parametrize(("faults", "code"), [([], 0), (["doubled end: t1"], 1)])
def test_what_the_soak_says(monkeypatch, capsys, faults, code):
    """Round after round until there are enough; 1 where anything is wrong."""
    rounds = []

    def run(name, number, shapes):
        rounds.append((name, number))
        return Outcome(name, 4, faults=faults)

    monkeypatch.setattr("soak.lost.__main__.run", run)
    assert main(["--scenario", "worker-killed", "--trials", "6"]) == code
    assert rounds == [("worker killed", 0), ("worker killed", 1)]
    assert "| worker killed | 8 | 0 |" in capsys.readouterr().out


def test_a_round_that_does_not_come_to_its_end(monkeypatch, capsys):
    """Its tasks count as lost."""

    def run(*_):
        raise TimeoutError("in vain")

    monkeypatch.setattr("soak.lost.__main__.run", run)
    assert main(["--scenario", next(iter(SCENARIOS)).replace(" ", "-")]) == 1
    assert "task lost: in vain" in capsys.readouterr().out
