"""``celery -A proj statekit doctor``, run as a user runs it: lines, JSON and exit codes."""

import json
import re
import subprocess
import sys

import pytest
from celery.bin.celery import celery
from click.testing import CliRunner
from tests.servers import free_port

HEALTHY = """
    from celery import Celery
    from celery_statekit import StatefulTask

    app = Celery("proj", broker="sqla+sqlite:///broker.db", backend="file:///tmp")

    @app.task(base=StatefulTask)
    def add(x, y):
        return x + y
"""


def test_all_is_well(doctor):
    """A project with nothing wrong: one aligned line for each finding, exit code 0."""
    ended = doctor(HEALTHY)

    *lines, count = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    assert all(line.startswith("ok") for line in lines), ended.stdout
    assert len({re.match(r"\S+ +\S+ +", line).end() for line in lines}) == 1
    assert count == f"{len(lines)} ok, 0 warning, 0 must change"


def test_something_must_change(doctor):
    """Each line says what to change, in the words of the app's own settings; exit code 1."""
    ended = doctor(HEALTHY + "    app.conf.statekit_store = 'memory://'")

    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("must"))
    assert ended.returncode == 1
    assert "seen by one process alone" in line
    assert line.endswith("-> app.conf.statekit_store = 'redis://localhost:6379/0'")


def test_json(doctor):
    """With ``--json`` the same is one JSON object, and nothing else is printed."""
    ended = doctor(HEALTHY + "    app.conf.statekit_histroy = 5", "--json")

    told = json.loads(ended.stdout)
    (fault,) = (each for each in told["findings"] if each["level"] == "must change")
    assert ended.returncode == 1
    assert (told["app"], told["must_change"]) == ("proj", 1)
    assert fault["name"] == "settings"
    assert "did you mean statekit_history?" in fault["found"]
    assert {frozenset(each) for each in told["findings"]} == {
        frozenset(("level", "name", "found", "change"))
    }


@pytest.mark.parametrize(
    ("words", "before"),
    [(("--nope",), ("-A", "proj")), ((), ("-A", "nobody"))],
)
def test_usage(doctor, words, before):
    """What cannot be understood, and an app that is not there, ends with exit code 2."""
    ended = doctor(HEALTHY, *words, before=before)

    assert ended.returncode == 2
    assert ended.stdout == ""


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_none(seconds):
    """The seconds are a finite number over 0; anything else ends with exit code 2."""
    ended = CliRunner().invoke(celery, ["statekit", "doctor", "--timeout", seconds])

    assert ended.exit_code == 2
    assert "--timeout" in ended.stderr


def test_no_app(doctor):
    """Without ``-A`` the first line says whose settings these are."""
    ended = doctor(HEALTHY, before=())

    assert ended.returncode == 1
    assert "no -A: this is Celery's default app" in ended.stdout.splitlines()[0]


def test_no_password_is_shown(doctor):
    """Neither from the store, nor from broker, backend or an import that fails."""
    ended = doctor(
        f"""
        from celery import Celery

        url = "redis://user:secret@127.0.0.1:{free_port()}/0"
        app = Celery("proj", broker=url, backend=url, include=["broken"])
        app.conf.statekit_store = "nobody://user:secret@127.0.0.1/0"
        app.conf.broker_transport_options = {{"sentinel_kwargs": {{"password": "secret"}}}}
        app.conf.update(task_acks_late=True, task_time_limit=9999)
        app.loader.import_task_module = lambda name: 1 / 0 if name == "fine" else int(url)

        @app.task
        def add():
            pass
        """
    )

    assert ended.returncode == 1
    assert "://***@" in ended.stdout
    assert "visibility" in ended.stdout
    assert "secret" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("states", ["redis", "postgresql+psycopg"])
def test_a_dead_store(doctor, states):
    """A store that does not answer is told at once, not waited for."""
    ended = doctor(
        HEALTHY + f"    app.conf.statekit_store = '{states}://127.0.0.1:{free_port()}/0'"
    )

    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("must"))
    assert ended.returncode == 1, ended.stdout
    assert line.split()[2] == "store"


def test_tasks_are_imported_as_by_a_worker(doctor, tmp_path):
    """Task modules named by ``include`` count; one that cannot be imported is told."""
    (tmp_path / "more.py").write_text(
        "from proj import app\nfrom celery_statekit import StatefulTask\n"
        "@app.task(base=StatefulTask)\ndef more(): pass\n"
    )
    source = HEALTHY.replace('"file:///tmp"', '"file:///tmp", include=["more", "gone"]')

    ended = doctor(source)

    assert ended.returncode == 1
    assert "No module named 'gone'" in ended.stdout
    assert "2 of 2 tasks are stateful" in ended.stdout


def test_a_plugin_costs_other_commands_nothing():
    """What Celery imports for each of its commands leads to no store and no check."""
    code = (
        "import sys, celery.bin.celery as c; c.celery.commands['statekit'];"
        "print([m for m in sys.modules if m.startswith('celery_statekit')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout.strip() == "['celery_statekit', 'celery_statekit.cli']"


HIDDEN = """
    import sys

    class Hides:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "{package}":
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Hides())
    from celery import Celery

    app = Celery("shop", broker="{url}", backend="{backend}")
    app.conf.statekit_store = "sqlite:///states.db"
"""


@pytest.mark.parametrize(
    ("package", "url", "backend", "extra"),
    [
        ("redis", "redis://localhost", "redis://localhost", "redis"),
        ("redis", "sentinel://localhost", "rediss://localhost", "redis"),
        ("sqlalchemy", "sqla+sqlite:///broker.db", "db+sqlite:///results.db", "sql"),
        (
            "psycopg",
            "sqla+postgresql+psycopg://localhost",
            "db+postgresql+psycopg://localhost",
            "postgresql",
        ),
        ("pymysql", "sqla+mysql+pymysql://localhost", "db+mysql+pymysql://localhost", "mysql"),
    ],
)
def test_what_is_not_installed_is_not_mended_by_a_url(doctor, package, url, backend, extra):
    """Of broker and results it says which package is missing, and which extra installs it."""
    ended = doctor(HIDDEN.format(package=package, url=url, backend=backend), "--json")

    found = {each["name"]: each for each in json.loads(ended.stdout)["findings"]}
    for name in ("broker", "result_backend"):
        assert found[name]["level"] == "must change"
        assert found[name]["found"].endswith(f"the package {package} is not installed")
        assert found[name]["change"] == f"pip install celery-statekit[{extra}]"
    assert ended.returncode == 1
