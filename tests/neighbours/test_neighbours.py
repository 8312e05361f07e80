"""Sentry, OpenTelemetry, django-celery-results, celery-once and a monitor beside us in one app.

Each does for the tasks of an app with the library what it does for those of one without: a real
worker and a real publisher carry out the same tasks in both, and what the neighbours saw is
compared. Skipped where they are not installed: ``pip install celery-statekit[neighbours]``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from celery import VERSION as CELERY

from .place import ENVIRONMENT, Place

HERE: Final = Path(__file__).parent
#: The slowest run of the app, in seconds.
DEADLINE: Final = 120
INSTALLED: Final = (
    "celery_once",
    "django_celery_results",
    "opentelemetry.instrumentation.celery",
    "opentelemetry.sdk",
    "sentry_sdk",
)
REJECTED: Final = ["celery.exceptions", "Reject", "no", "False"]
SIDES: Final = ("left", "right", "alone")

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(3 * DEADLINE)]


class Seen:
    """What the processes of one run reported, and what was witnessed of them."""

    def __init__(self, place: Place, report: dict[str, Any]) -> None:
        self.ids: dict[str, str] = report["ids"]
        self.report = report
        self.errors = [
            noted for noted in place.noted("sentry") if noted["error"] or noted["logged"]
        ]
        self.spans = place.noted("spans")
        self._by_span = {span["span"]: span for span in self.spans}
        #: What has the same result with the library and without it: before 5.7 Celery stored none
        #: of a task that is rejected.
        self.stored = self.ids.keys() - ({"reject"} if CELERY < (5, 7) else set())

    def spans_of(self, name: str, action: str) -> list[dict[str, Any]]:
        """The spans of a task's publishing or running."""
        return [
            span
            for span in self.spans
            if span["id"] == self.ids[name] and span["name"].startswith(action)
        ]

    def parent(self, span: dict[str, Any]) -> dict[str, Any]:
        return self._by_span.get(span["parent"], {})

    def traced(self, name: str) -> Counter[tuple[Any, ...]]:
        """What the spans of a task say, but for their numbers."""
        return Counter(
            (
                *(span[key] for key in ("name", "kind", "status", "state")),
                self.parent(span).get("name"),
            )
            for span in self.spans
            if span["id"] == self.ids[name]
        )

    def captured(self, name: str) -> list[dict[str, Any]]:
        """The errors that Sentry captured of a task, but for its id."""
        return [
            {key: value for key, value in error.items() if key != "id"}
            for error in self.errors
            if error["id"] == self.ids[name]
        ]

    def monitored(self, name: str) -> dict[str, Any]:
        """What a monitor was told of a task.

        That it was sent, or retried, may come after what the next run says of itself.
        """
        told = dict(self.report["monitor"][name])
        if told["events"].count("task-started") > 1:
            del told["state"]
        return {**told, "events": Counter(told["events"])}

    def row(self, name: str) -> dict[str, Any] | None:
        """What django-celery-results keeps of a task, but for when; of one that rests, not where."""
        row = dict(self.report["rows"][name] or {})
        row.pop("done", None)
        if row.get("status") == "STARTED":
            row["result"] = sorted(row["result"])
        return row or None


def carry_out(place: Place) -> Seen:
    """Run the app's worker until its publisher is done."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
        "DJANGO_SETTINGS_MODULE": f"{HERE.name}.settings",
        ENVIRONMENT: place.to_json(),
    }
    command = [sys.executable, "-m", "celery", "-A", f"{HERE.name}.app", "worker", "-c", "2"]
    command += ["-n", f"{place.name}@test", "-l", "INFO", "--without-gossip", "--without-mingle"]
    report = Path(place.folder, "report.json")
    log = Path(place.folder, "log")
    with log.open("wb") as lines:
        options: dict[str, Any] = {
            "env": environment, "cwd": place.folder, "stdout": lines, "stderr": lines,
        }  # fmt: skip
        worker = subprocess.Popen(command, start_new_session=True, **options)
        try:
            subprocess.run(
                [sys.executable, "-m", f"{HERE.name}.publisher", report],
                check=False,
                timeout=DEADLINE,
                **options,
            )
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    assert report.exists(), log.read_text(errors="replace")
    return Seen(place, json.loads(report.read_text()))


@pytest.fixture(scope="module")
def run(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Seen]:
    """Runs the app in a place of its own."""
    missing = [name for name in INSTALLED if not is_installed(name)]
    if missing:
        reason = f"{', '.join(missing)}: not installed; pip install celery-statekit[neighbours]"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)

    def carry_out_in(results: str, *, with_statekit: bool) -> Seen:
        return carry_out(
            Place(
                name=f"neighbours-{uuid.uuid4().hex[:12]}",
                folder=str(tmp_path_factory.mktemp(results)),
                redis_url=redis_url,
                results=results,
                with_statekit=with_statekit,
            )
        )

    return carry_out_in


def is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its package
        return False


@pytest.fixture(scope="module")
def alone(run: Callable[..., Seen]) -> Seen:
    """What the neighbours see in an app without the library."""
    return run("django", with_statekit=False)


@pytest.fixture(scope="module", params=["django", "redis"])
def seen(request: pytest.FixtureRequest, run: Callable[..., Seen]) -> Seen:
    """What they see beside it; results in Redis are stored by its one write."""
    return run(request.param, with_statekit=True)


# --- Sentry --------------------------------------------------------------------------------------


def failure(error: str, task: str) -> dict[str, Any]:
    return {"error": error, "task": task, "job": task, "logged": None, "handled": False}


def test_sentry_captures_each_failure_once(seen: Seen) -> None:
    """With the error's type and the task's name; a refused move is a failure like any other."""
    for name in ("fail", "chain_last"):
        assert seen.captured(name) == [failure("KeyError", "shop.fail")]
    for side in SIDES:
        assert seen.captured(f"{side}_failed") == [failure("KeyError", f"shop.once_{side}")]
    assert seen.captured("pack") == [failure("IllegalTransition", "shop.pack")]


def test_sentry_captures_nothing_else(seen: Seen, alone: Seen) -> None:
    """Not Ignore, Reject, Retry or what is expected; not a run that is over; nothing of our log."""
    failed = {"fail", "chain_last"} | {f"{s}_failed{a}" for s in SIDES for a in ("", "_again")}

    assert {error["id"] for error in alone.errors} == {alone.ids[name] for name in failed}
    assert {error["id"] for error in seen.errors} == {seen.ids[name] for name in failed | {"pack"}}


# --- OpenTelemetry -------------------------------------------------------------------------------


def test_each_run_is_the_child_of_its_publishing(seen: Seen) -> None:
    """In one trace, from whoever published the task to the end of its run."""
    runs = [span for span in seen.spans if span["name"].startswith("run/")]

    assert len(runs) >= len([name for name in seen.ids if "refused" not in name])
    for span in runs:
        publishing = seen.parent(span)
        assert publishing["name"] == span["name"].replace("run/", "apply_async/")
        assert (publishing["id"], publishing["trace"]) == (span["id"], span["trace"])


def test_what_a_run_sends_belongs_to_its_trace(seen: Seen) -> None:
    """The next step of a chain, and the next attempt of a task that is retried."""
    (first,) = seen.spans_of("chain_first", "run/")
    (published,) = seen.spans_of("chain_last", "apply_async/")
    assert published["parent"] == first["span"]

    begun = [span for span in seen.spans_of("retry", "run/") if span["state"] == "RETRY"]
    _, published = sorted(
        seen.spans_of("retry", "apply_async/"), key=lambda span: span["parent"] is not None
    )
    assert published["parent"] == begun[0]["span"]


def test_a_span_says_how_its_run_ended(seen: Seen) -> None:
    """A failure is an error; a run that is over is not."""
    assert [span["status"] for span in seen.spans_of("fail", "run/")] == ["ERROR"]
    assert [span["status"] for span in seen.spans_of("pack", "run/")] == ["ERROR"]
    for name in ("twice", "again"):
        spans = seen.spans_of(name, "run/")
        assert {span["status"] for span in spans} == {"UNSET"}
        assert {span["state"] for span in spans} == {"SUCCESS", "IGNORED"}


def test_the_spans_are_those_of_an_app_without_the_library(seen: Seen, alone: Seen) -> None:
    """Names, kinds, states, errors and parents."""
    assert {name: seen.traced(name) for name in alone.ids} == {
        name: alone.traced(name) for name in alone.ids
    }


# --- django-celery-results -----------------------------------------------------------------------


@pytest.mark.parametrize("seen", ["django"], indirect=True)
def test_rows_hold_state_and_result(seen: Seen, alone: Seen) -> None:
    """As without the library; a delivery that is put off, and one that is late, leave no trace."""
    assert {name: seen.row(name) for name in alone.stored} == {
        name: alone.row(name) for name in alone.stored
    }

    row = {"name": "shop.succeed", "result": 3, "traceback": False, "worker": True}
    assert seen.row("succeed") == {**row, "status": "SUCCESS"}
    assert seen.row("again") == {**row, "status": "SUCCESS"}
    assert seen.report["rows"]["again"] == seen.report["again_row"]
    twice = seen.row("twice")
    assert twice is not None
    assert (twice["status"], twice["result"]) == ("SUCCESS", "by the first")
    refused = seen.row("pack")
    assert refused is not None
    assert (refused["status"], refused["traceback"]) == ("FAILURE", True)
    assert refused["result"]["exc_type"] == "IllegalTransition"


def test_a_state_of_the_task_is_celerys_state(seen: Seen) -> None:
    """While the task stands in it, for whoever reads the result; then the end is."""
    assert seen.report["standing"] == "SENDING"
    assert seen.report["results"]["pack"]["state"] == "FAILURE"


@pytest.mark.parametrize("seen", ["django"], indirect=True)
def test_a_state_of_the_task_stands_in_its_row(seen: Seen) -> None:
    """With the name and the label of the state."""
    row = seen.report["standing_row"]
    assert (row["status"], row["name"]) == ("SENDING", "shop.pack")
    assert (row["result"]["state"], row["result"]["label"]) == ("SENDING", "Sending")


# --- celery-once ---------------------------------------------------------------------------------


def test_once_locks_and_unlocks(seen: Seen, alone: Seen) -> None:
    """Refused while it is queued or runs; free when it has succeeded, and when it has failed."""
    assert seen.report["once"] == alone.report["once"]
    assert seen.report["once"] == {side: {"refused": True, "returned": True} for side in SIDES}


def test_what_once_refuses_leaves_no_record(seen: Seen) -> None:
    """It was never sent: it is not PENDING."""
    for side in SIDES:
        assert seen.report["records"][f"{side}_refused"]["state"] == "UNKNOWN"


# --- a monitor -----------------------------------------------------------------------------------


def test_a_monitor_is_told_what_it_is_told_without_the_library(seen: Seen, alone: Seen) -> None:
    """The same events with the same fields, and so the same states."""
    assert {name: seen.monitored(name) for name in alone.ids} == {
        name: alone.monitored(name) for name in alone.ids
    }


# --- Celery's result and our record -----------------------------------------------------------------


def test_celerys_result_is_what_it_is_without_the_library(seen: Seen, alone: Seen) -> None:
    """The same states, values and errors, of the same classes."""
    results, plain = seen.report["results"], alone.report["results"]
    assert {name: results[name] for name in alone.stored} == {
        name: plain[name] for name in alone.stored
    }
    assert results["reject"] == {"state": "FAILURE", "value": REJECTED}


def test_our_record_is_right(seen: Seen) -> None:
    """Whatever the neighbours do around a run."""
    histories = {
        "succeed": "PENDING STARTED SUCCESS",
        "fail": "PENDING STARTED FAILURE",
        "fail_as_expected": "PENDING STARTED FAILURE",
        "retry": "PENDING STARTED RETRY STARTED SUCCESS",
        "ignore": "PENDING STARTED IGNORED",
        "reject": "PENDING STARTED FAILURE",
        "replace": "PENDING STARTED IGNORED STARTED SUCCESS",
        "chain_first": "PENDING STARTED SUCCESS",
        "chain_last": "PENDING STARTED FAILURE",
        "chord": "PENDING STARTED SUCCESS",
        "pack": "PENDING STARTED SENDING FAILURE",
        "twice": "PENDING STARTED SUCCESS",
        "again": "PENDING STARTED SUCCESS",
    }
    for side in ("left", "right"):
        histories |= {
            f"{side}_first": "PENDING STARTED SUCCESS",
            f"{side}_second": "PENDING STARTED SUCCESS",
            f"{side}_failed": "PENDING STARTED FAILURE",
        }

    records = seen.report["records"]
    assert {name: records[name]["history"] for name in histories} == histories
    assert {records[name]["source"] for name in histories} == {"record"}
    assert records["fail"]["error"] == "KeyError"


def test_a_class_of_celery_once_alone_is_no_task_of_ours(seen: Seen) -> None:
    """``base=QueueOnce`` keeps no record; Celery's result is read instead."""
    assert seen.report["records"]["alone_first"]["source"] == "celery"
    assert seen.report["records"]["alone_first"]["state"] == "SUCCESS"
