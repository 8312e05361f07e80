"""What each outcome comes to, in our record and in Celery's result, on every kind of worker.

The expectations are data: ``cells.csv``, one row a cell. ``STATEKIT_MATRIX=short`` measures eight
configurations instead of all 32. What Celery before 5.7 does otherwise is ``cells-before-5.7.csv``.
"""

from __future__ import annotations

from itertools import product

from .cells import BEFORE_5_7, CELLS, CONFIGURATIONS, OUTCOMES, SHORT, read, read_cells

ENDS = {"SUCCESS", "FAILURE", "REVOKED"}


def test_every_outcome_has_one_cell_in_every_configuration() -> None:
    """The rows are the product of the axes: none is missing, none is surplus, all are in order."""
    there = [(cell.outcome, cell.configuration) for cell in read_cells()]
    assert there == sorted(product(OUTCOMES, CONFIGURATIONS))


def test_what_is_other_before_celery_5_7_is_other() -> None:
    """Each of those cells is one of all, expects something else, and has a note that says why."""
    cells = {cell.key: cell for cell in read(CELLS)}
    for cell in read(BEFORE_5_7):
        assert cell.expected != cells[cell.key].expected
        assert cell.note


def test_what_cannot_be_told_is_explained() -> None:
    """A cell without a history has a note that says why, and nothing else."""
    for cell in read_cells():
        if not cell.told:
            assert cell.note.startswith("cannot be told: ")
            assert not any(vars(cell.expected).values())


def test_no_cell_leaves_an_end() -> None:
    """A history that has come to SUCCESS, FAILURE or REVOKED goes no further."""
    for cell in read_cells():
        for history in cell.expected.history.split(" / "):
            passed = history.split()[:-1]
            assert not ENDS & set(passed), cell


def test_short_meets_every_pair() -> None:
    """Any two values of two axes meet in one of the eight configurations of the short run."""
    for first, second in product(vars(SHORT[0]), repeat=2):
        pairs = {(getattr(each, first), getattr(each, second)) for each in CONFIGURATIONS}
        assert {(getattr(each, first), getattr(each, second)) for each in SHORT} == pairs
