"""What is wrong with an app's settings, its store and its tasks, and what to change.

A check is a generator ``app -> findings``, named as its lines, in one of the modules beside this
one; adding it to ``CHECKS`` is all it takes. None is waited for longer than a deadline.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from celery import Celery

from celery_statekit.doctor import broker, results, store, tasks
from celery_statekit.doctor.finding import Finding, Level
from celery_statekit.errors import InvalidSetting, sentence

__all__ = ["CHECKS", "Finding", "Level", "examine", "lines", "report"]

Check: TypeAlias = Callable[[Celery], Iterator[Finding]]

#: In the order of their lines.
CHECKS: Final[Sequence[Check]] = (
    tasks.versions,
    tasks.tasks,
    tasks.base,
    store.settings,
    results.result_backend,
    results.result_expires,
    results.result_retries,
    results.serializers,
    broker.broker,
    broker.visibility,
    store.store,
)


def examine(app: Celery, *, timeout: float = 10.0, named: bool = True) -> list[Finding]:
    """Everything there is to say about ``app``; its task modules are imported, as by a worker.

    The store is written to, under a key of its own that is removed again.

    Args:
        app: to examine.
        timeout: seconds that one check may take.
        named: whether the user said which app, rather than to get Celery's default one.
    """
    findings = [] if named else [tasks.nobodys(app)]
    # Not under the deadline: foreign code that is imported may insist on the main thread.
    # Once each, for Celery makes a task that all apps share a second time.
    findings += dict.fromkeys(tasks.loaded(app))
    for check in CHECKS:
        findings += _within(timeout, check, app)
    return findings


def _within(seconds: float, check: Check, app: Celery) -> list[Finding]:
    """What the check finds in time, and what became of it if that is not all."""
    found: list[Finding] = []
    name = check.__name__

    def run() -> None:
        try:
            found.extend(check(app))
        except InvalidSetting as exc:
            found.append(Finding.fault(name, exc))
        except Exception as exc:  # noqa: BLE001 - one broken check hides no other
            # Not a warning: what no check is prepared for, no worker is either.
            broke = f"could not be examined: {sentence(exc)}"
            found.append(Finding.must(name, broke, "see the settings that it is about"))

    thread = threading.Thread(target=run, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if not thread.is_alive():
        return found
    late = f"no answer within {seconds:g} s"
    return [*found, Finding.must(name, late, "see that the server answers, or give --timeout")]


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One aligned line for each finding, and one that counts them."""
    width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        change = f" -> {finding.change}" if finding.change else ""
        yield f"{finding.level.value:<11}  {finding.name:<{width}}  {finding.found}{change}"
    count = Counter(finding.level for finding in findings)
    yield ", ".join(f"{count[level]} {level.value}" for level in Level)


def report(app: Celery, findings: Sequence[Finding]) -> str:
    """The findings as one JSON object."""
    return json.dumps(
        {
            "app": str(app.main or ""),
            "must_change": sum(finding.must_change for finding in findings),
            "findings": [finding.to_dict() for finding in findings],
        },
        indent=2,
    )
