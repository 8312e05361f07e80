"""What must be true of every trial, whatever was broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from celery_statekit.states import ENDS

from .yard import Trial, Yard


def judge(
    yard: Yard, trials: Sequence[Trial], *, end: str = "SUCCESS", runs: int | None = 1
) -> list[str]:
    """What is wrong with these trials, each line begins with which rule is broken.

    Args:
        end: how each had to end.
        runs: how many runs each had to have; None: any number over one.
    """
    return [
        f"{rule}: {trial.name} {trial.shape}: {what}"
        for trial in trials
        for rule, what in _faults(yard, trial, end, runs)
    ]


def _faults(yard: Yard, trial: Trial, end: str, runs: int | None) -> Iterator[tuple[str, str]]:
    history = trial.result.history(limit=1000)
    states = [change.to_state for change in history]
    told = " ".join(f"{change.to_state}:{change.attempt}" for change in history)
    attempts = [change.attempt for change in history]
    if attempts != sorted(attempts):
        yield "attempt fell", told
    if runs == 1 and end == "SUCCESS" and "LOST" in [*trial.seen, *states]:
        yield "said to be lost", f"{trial.seen}: {told}"
    for rule, what in _ends(trial, states, end):
        yield rule, f"{what}: {told}"
    for rule, what in _doings(yard, trial, end, runs):
        yield rule, f"{what}: {told}"


def _ends(trial: Trial, states: list[str], end: str) -> Iterator[tuple[str, str]]:
    state = trial.look()
    if not state.final:
        yield "task lost", f"it stands at {state.state}"
        return
    ends = [name for name in states if name in ENDS]
    if len(ends) > 1 or states[-1] not in ENDS:
        yield "doubled end", " ".join(ends)
    if state.state != end:
        yield "wrong end", f"{state.state} ({state.reason})"
    celery = trial.result.backend.get_task_meta(trial.result.id)["status"]
    if celery != state.state:
        yield "two truths", f"Celery says {celery}, the record {state.state}"


def _doings(yard: Yard, trial: Trial, end: str, runs: int | None) -> Iterator[tuple[str, str]]:
    begun = {
        line: times for line, times in yard.book("begun").items() if line.split()[0] == trial.name
    }
    if any(times > 1 for times in begun.values()):
        yield "one number, two runs", f"{begun}"
    if len(begun) != runs if runs is not None else len(begun) < 2:
        yield "runs", f"{sorted(begun)}, not {runs}"
    for step, wanted in steps_of(trial, end).items():
        found = yard.book(step)[trial.name]
        if found > wanted:
            yield "doubled step", f"{step} {found} times, not {wanted}"
        if found < wanted:
            yield "step lost", f"{step} {found} times, not {wanted}"


def steps_of(trial: Trial, end: str) -> dict[str, int]:
    """How often what comes after it has to be done."""
    follows = int(trial.shape != "alone")
    succeeds = end == "SUCCESS"
    return {"after": follows * succeeds, "failed": follows * (not succeeds)}
