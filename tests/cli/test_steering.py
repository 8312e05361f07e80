"""``celery -A proj statekit cancel|pause|resume``, run as a user runs them."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import textwrap

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_statekit import StatefulResult, StatefulTask
from celery_statekit.attempt import Attempt
from celery_statekit.settings import Settings

PROJ = """
    from celery import Celery
    from celery_statekit import StatefulTask

    app = Celery("proj", broker="memory://", backend="file://{folder}")
    app.conf.statekit_store = "sqlite:///{folder}/states.db"

    @app.task(base=StatefulTask)
    def add(x, y):
        return x + y
"""


@pytest.fixture
def app(tmp_path):
    """The project's app, in this process."""
    app = Celery("proj", broker="memory://", backend=f"file://{tmp_path}", set_as_current=False)
    app.conf.statekit_store = f"sqlite:///{tmp_path}/states.db"

    @app.task(base=StatefulTask, name="proj.add", shared=False)
    def add(x, y):
        return x + y

    yield app
    Settings.of(app).store.close()
    app.close()


@pytest.fixture
def tasks(app):
    """Ids of tasks that wait, run, and have ended."""
    tracker = Settings.of(app).tracker
    for id in ("waits", "runs", "ended"):
        tracker.queue(id, "proj.add")
    tracker.end_from_outside("ended", "proj.add", "FAILURE", reason="bad row")
    attempt = Attempt.of(tracker, "runs", "proj.add", app.tasks["proj.add"]._flow)
    attempt.claim()
    yield attempt
    attempt.release()


@pytest.fixture
def statekit(tmp_path, app):
    """Run a command of ours."""

    def statekit(*words: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proj.py").write_text(textwrap.dedent(PROJ.format(folder=tmp_path)))
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "proj", "statekit", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return statekit


def test_cancel(statekit, tasks, app):
    """A line for each id; one that runs is asked, one that waits has ended, for Celery too."""
    ended = statekit("cancel", "runs", "waits", "--reason", "no longer wanted", "--by", "ada")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        "runs  asked to end: its run sees it at its next state call",
        "waits  was not running, and has ended as REVOKED",
    ]
    runs, waits = (StatefulResult(id, app=app) for id in ("runs", "waits"))
    assert str(runs.task_state.asked) == "cancel by ada: no longer wanted"
    with pytest.raises(TaskRevokedError, match="no longer wanted"):
        waits.get(timeout=1)
    assert waits.history()[-1].detail == {"by": "ada"}


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("cancel", "ended"), 1, "ended  nothing changed: it has ended as FAILURE"),
        (("pause", "ended"), 1, "ended  nothing changed: it has ended as FAILURE"),
        (("resume", "waits"), 1, "waits  nothing changed: it is not paused"),
        (("cancel", "nobody"), 2, "nobody  nobody knows it"),
        (("resume", "nobody", "waits"), 2, "nobody  nobody knows it"),
    ],
)
def test_nothing_changes(statekit, tasks, words, code, line):
    """The exit code is that of the worst."""
    ended = statekit(*words)

    assert ended.returncode == code
    assert ended.stdout.splitlines()[0] == line


def test_pause_and_resume(statekit, tasks, app):
    """Who runs the command is who asks."""
    result = StatefulResult("runs", app=app)
    paused = statekit("pause", "runs", "--reason", "lunch")
    assert paused.stdout == "runs  asked to wait: its run sees it at its next state call\n"
    asked = result.task_state.asked
    assert (asked.what, asked.by, asked.reason) == ("pause", getpass.getuser(), "lunch")

    again = statekit("pause", "runs")
    assert again.returncode == 1
    assert again.stdout.startswith("runs  nothing changed: pause by ")
    resumed = statekit("resume", "runs")
    assert (resumed.returncode, resumed.stdout) == (0, "runs  goes on\n")
    assert result.task_state.asked is None


def test_json(statekit, tasks):
    """With ``--json`` the same is one JSON object, and nothing else is printed."""
    ended = statekit("cancel", "waits", "ended", "nobody", "waits", "--json")

    told = json.loads(ended.stdout)["tasks"]
    assert ended.returncode == 2
    assert [(each["id"], each["answer"], each["state"]) for each in told] == [
        ("waits", "revoked", "REVOKED"),
        ("ended", "ended", "FAILURE"),
        ("nobody", "unknown", "UNKNOWN"),
    ]
    assert all(each["said"] for each in told)


@pytest.mark.parametrize(
    "words",
    [("cancel",), ("pause", ""), ("cancel", "waits", "--by", "two\nlines"), ("resume", "-x")],
)
def test_usage(statekit, tasks, app, words):
    """What cannot be understood ends with exit code 2, and changes nothing."""
    ended = statekit(*words)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Error" in ended.stderr
    assert StatefulResult("waits", app=app).task_state.asked is None


def test_a_store_that_is_away(statekit, tmp_path, app):
    """It says so, and ends with exit code 3."""
    (tmp_path / "states.db").write_text("no database")
    ended = statekit("pause", "waits")

    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.splitlines()[-1].startswith("Error: ")
