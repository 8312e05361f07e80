"""The fixtures in a test suite of a user's, run by a pytest of its own."""

from __future__ import annotations

from textwrap import dedent

import pytest

pytest_plugins = ("pytester", "celery_statekit.testing.fixtures")
pytestmark = pytest.mark.slow

SHOP = """
from celery import Celery
from celery_statekit import ClientState, StatefulTask, States

app = Celery("shop", broker="redis://nowhere.invalid", backend="redis://nowhere.invalid")

class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"

class Order(ClientState):
    items: list[str] = []

def read(path):
    return path.split("-")

@app.task(bind=True, base=StatefulTask, states=Import)
def load(self, path):
    self.enter(Import.READING)
    rows = read(path)
    self.enter(Import.IMPORTING, reason=f"{len(rows)} rows")
    for row in self.track(rows, resume=True):
        int(row)
    return len(rows)
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    """Run tests of a shop, with the fixtures or without."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "120")

    def run(tests, *arguments, plugin=True):
        pytester.makepyfile(shop=SHOP)
        if plugin:
            pytester.makeconftest('pytest_plugins = ["celery_statekit.testing.fixtures"]')
        pytester.makepyfile(test_shop=dedent(tests))
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)

    return run


def test_each_fixture_in_a_suite_of_a_users(suite):
    """Runs, the clock, both kinds of workers."""
    done = suite("""
        import shop

        def test_a_run(stateful_run, monkeypatch, frozen_clock):
            monkeypatch.setattr(shop, "int", lambda row: frozen_clock.advance(2), raising=False)
            run = stateful_run(shop.load, "1-2-3")
            run.assert_entered("READING", shop.Import.IMPORTING)
            assert run.result == 3
            assert run.progress.rate == 0.5
            assert run.task_state.ended_at - frozen_clock.start == 6

        def test_a_second_attempt(stateful_run):
            assert stateful_run(shop.load, "x-y-3", attempt=2, finished=2).result == 3

        def test_a_worker(stateful_worker):
            worker = stateful_worker(shop.app)
            assert worker.wait(shop.load.delay("1-2")).state == "SUCCESS"

        def test_another_worker(stateful_worker):
            worker = stateful_worker(shop.app, pool="threads", store="sqlite")
            result = shop.load.delay("1-x")
            assert worker.wait(result).state == "FAILURE"

        def test_a_process(stateful_worker_process):
            worker = stateful_worker_process("shop:app")
            result = shop.load.delay("1-2")
            assert worker.wait(result).state == "SUCCESS"
            assert result.get(timeout=10) == 2
    """)

    done.assert_outcomes(passed=5)


def test_a_failure_says_what_was_expected_and_what_came(suite):
    """States side by side, what the run did, and where the task failed; nothing of the library."""
    done = suite("""
        import shop

        def test_it(stateful_run):
            run = stateful_run(shop.load, "1-two-3")
            run.assert_entered("READING")
    """)

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            ">*int(row)",
            "E*ValueError: invalid literal for int() with base 10: 'two'",
            "shop.py:*: ValueError",
            "The above exception was the direct cause of the following exception:",
            ">*run.assert_entered(*",
            "E*AssertionError: shop.load did not enter the states expected",
            "E*expected: READING",
            "E*entered:  READING, IMPORTING",
            "E*what it did:",
            "E*PENDING",
            "E*STARTED",
            "E*READING",
            "E*IMPORTING  3 rows",
            "E*FAILURE    ValueError: invalid literal for int() with base 10: 'two'",
            "E*progress: 1/3 (33 %)",
            "E*left by ValueError: invalid literal for int() with base 10: 'two'",
            "test_shop.py:5: AssertionError",
            "FAILED test_shop.py::test_it - AssertionError: shop.load did not enter the states expected*",
        ]
    )
    done.stdout.no_fnmatch_line("*celery_statekit/testing/run.py*")


@pytest.mark.parametrize(
    ("check", "lines"),
    [
        (
            "run.assert_ended()",
            ["E*shop.load did not end as expected", "E*expected: SUCCESS", "E*ended:    FAILURE"],
        ),
        (
            "run.assert_refused('READING')",
            ["E*shop.load was not refused the moves expected", "E*expected: READING", "E*refused:  none"],
        ),
        ("assert run.result == 3", ["E*ValueError: invalid literal*", "shop.py:*: ValueError"]),
        ("run.assert_entered('READNIG')", ["E*InvalidState: no state of Import at state; got 'READNIG'*"]),
        ("assert run.states == ('READING',)", ["E*assert ('READING', 'IMPORTING') == ('READING',)"]),
    ],
)  # fmt: skip
def test_other_failures_are_shown_as_well(suite, check, lines):
    """Each says what was wrong."""
    done = suite(f"""
        import shop

        def test_it(stateful_run):
            run = stateful_run(shop.load, "1-two-3")
            {check}
    """)

    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(lines)


def test_a_mistake_in_the_call_is_an_error_of_the_test(suite):
    """Wrong arguments of the task are not its failure."""
    done = suite("""
        import shop

        def test_it(stateful_run):
            stateful_run(shop.load, "1", "2")

        def test_other(stateful_run):
            stateful_run(shop.load, "1", last_checkpoint=5)
    """)

    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["E*TypeError: load() takes 2 positional arguments but 3 were given"])
    done.stdout.fnmatch_lines(["E*InvalidInput: nothing is left by no run at attempt; got 1; *"])


def test_a_worker_of_a_test_that_fails_is_stopped(suite):
    """The next test has its own."""
    done = suite("""
        import shop

        def test_it(stateful_worker):
            stateful_worker(shop.app)
            assert shop.load.delay("1").get(timeout=10) == 2

        def test_other(stateful_worker):
            stateful_worker(shop.app)
            assert shop.load.delay("1").get(timeout=10) == 1
    """)

    done.assert_outcomes(failed=1, passed=1)
    done.stdout.fnmatch_lines(["E*assert 1 == 2"])


def test_beside_celerys_own_fixtures(suite):
    """The tasks of ``celery_app`` are run like any other."""
    done = suite(
        """
        from celery_statekit import StatefulTask

        def test_it(celery_app, stateful_run, stateful_worker):
            @celery_app.task(base=StatefulTask)
            def add(x, y):
                return x + y

            assert stateful_run(add, 1, 2).result == 3
            stateful_worker(celery_app)
            assert add.delay(1, 2).get(timeout=10) == 3
            assert stateful_run(add, 1, 2).result == 3
        """,
        "-p",
        "celery.contrib.pytest",
    )

    done.assert_outcomes(passed=1)


def test_who_does_not_use_them_pays_nothing(suite):
    """Naming the plugin imports neither Celery nor what the fixtures are made of."""
    done = suite("""
        import sys

        def test_it():
            mine = {name for name in sys.modules if name.split(".")[0] == "celery_statekit"}
            assert mine == {
                "celery_statekit", "celery_statekit.testing", "celery_statekit.testing.fixtures"
            }
            assert not {"celery", "kombu", "msgspec", "sqlite3"} & {*sys.modules}
    """)

    done.assert_outcomes(passed=1)


def test_who_does_not_ask_for_them_has_none(suite, monkeypatch):
    """The package is installed, and is no plugin: pytest does not import it."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    done = suite(
        """
        import sys

        def test_it():
            assert not [name for name in sys.modules if name.startswith("celery_statekit")]

        def test_other(stateful_run):
            '''Nobody knows it.'''
        """,
        *("-p", "no:celery"),
        plugin=False,
    )

    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["E*fixture 'stateful_run' not found"])


def test_each_fixture_says_what_it_is(pytester, monkeypatch):
    """``pytest --fixtures`` lists them with a sentence."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest('pytest_plugins = ["celery_statekit.testing.fixtures"]')
    done = pytester.runpytest_subprocess("--fixtures")

    for name in ("stateful_run", "frozen_clock", "stateful_worker", "stateful_worker_process"):
        done.stdout.fnmatch_lines([f"{name} -- *", "    *"])
