"""What a task says of its progress, and who sees it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from celery import signals as celery_signals
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from celery_statekit import Progress, StatefulTask, signals, track
from celery_statekit.errors import InvalidProgress, NotRunning


def test_last_value_is_kept_after_the_end(app, work, ended):
    """What a task last reported stands in its record when it has ended."""

    @app.task(bind=True, base=StatefulTask)
    def count(self):
        for _ in range(7):
            self.progress.update()

    work()
    state = ended(count.delay())
    assert state.state == "SUCCESS"
    assert state.progress.current == 7


def test_set_says_everything_at_once(app, work, ended):
    """``set`` reports current, total, message and the task's own facts."""

    @app.task(bind=True, base=StatefulTask)
    def count(self):
        self.progress.set(3, 4, "counting", rows_refused=1)

    work()
    progress = ended(count.delay()).progress
    assert (progress.current, progress.total, progress.message) == (3, 4, "counting")
    assert progress.details == {"rows_refused": 1}
    assert progress.percent == 75


def test_track_counts_a_whole_iterable(app, work, ended):
    """``self.track`` hands on every item and counts all of them, with message and total."""
    seen = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(["a", "b", "c"], "rows"):
            seen.append(row)

    work()
    progress = ended(load.delay()).progress
    assert seen == ["a", "b", "c"]
    assert (progress.current, progress.total, progress.message) == (3, 3, "rows")


def test_track_takes_a_total_for_a_generator(app, work, ended):
    """Of a source without a length the total is what ``total=`` says."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for _ in self.track((n for n in range(3)), total=6):
            pass

    work()
    progress = ended(load.delay()).progress
    assert (progress.current, progress.total) == (3, 6)


def test_free_track_needs_no_bind(app, work, ended):
    """The free ``track()`` reports for the task that runs in this thread."""

    @app.task(base=StatefulTask)
    def load():
        return sum(track(range(4), "adding"))

    work()
    result = load.delay()
    progress = ended(result).progress
    assert result.get() == 6
    assert (progress.current, progress.total, progress.message) == (4, 4, "adding")


def test_free_track_outside_a_run_merely_iterates():
    """Outside a task ``track()`` hands on the items."""
    assert list(track(iter("abc"), "letters", total=9)) == ["a", "b", "c"]


def test_free_track_in_a_task_of_celery_merely_iterates(app, work, until):
    """In a task that is not ours ``track()`` hands on the items."""

    @app.task
    def add():
        return sum(track(range(4)))

    work()
    result = add.delay()
    until(result.ready)
    assert result.get() == 6


def test_free_track_in_a_function_called_by_a_task_reports_for_the_task(app, work, ended):
    """A plain function that tracks needs no task object to report for the run that calls it."""

    def rows():
        yield from track(range(5), "inner")

    @app.task(base=StatefulTask)
    def load():
        return list(rows())

    work()
    assert ended(load.delay()).progress.current == 5


def test_steps_are_named_and_numbered(app, work, ended):
    """A step says its name, number and count, and what it has done itself."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.steps({"read": 1, "import": 3})
        self.progress.step("read")
        for _ in self.track(range(2)):
            pass
        self.progress.step("import", total=8)
        self.progress.update(4)

    work()
    progress = ended(load.delay()).progress
    assert (progress.step, progress.step_number, progress.step_count) == ("import", 2, 2)
    assert (progress.current, progress.total) == (4, 8)
    assert progress.percent == pytest.approx(62.5)


def test_slow_item_does_not_delay_what_came_before_it(app, work, gate, until):
    """While an item takes long, a reader sees all that were finished before it."""
    stuck, goes_on = gate(), gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(10)):
            if row == 3:
                stuck.set()
                goes_on.wait()

    work()
    result = load.delay()
    assert stuck.wait()
    state = until(lambda: (now := result.task_state).progress and now.progress.current == 3 and now)
    assert state.state == "STARTED"
    assert state.progress.total == 10


def test_slow_item_does_not_delay_celerys_own_result(app, work, gate, until):
    """While an item takes long, ``AsyncResult`` shows all that were finished before it."""
    goes_on = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(10)):
            if row == 3:
                goes_on.wait()

    work()
    result = load.delay()
    until(lambda: result.state == "PROGRESS" and result.info["current"] == 3)


def test_progress_is_throttled(app, work, ended):
    """Many updates become few versions of the record."""
    app.conf.statekit_progress_interval = 0.25

    @app.task(bind=True, base=StatefulTask)
    def count(self):
        until = time.monotonic() + 0.4  # so long that a few intervals pass
        updates = 0
        while time.monotonic() < until:
            self.progress.update()
            updates += 1
        return updates

    work()
    result = count.delay()
    state = ended(result)
    assert state.progress.current == result.get() > 100
    assert state.version < 20


def test_exception_leaves_the_exact_count(app, work, ended):
    """The record of a task that failed in a loop says how many items were finished."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        for row in self.track(range(100)):
            if row == 42:
                raise ValueError(row)

    work()
    state = ended(load.delay())
    assert state.state == "FAILURE"
    assert (state.progress.current, state.progress.total) == (42, 100)


def test_soft_time_limit_in_a_loop_leaves_the_exact_count(app, work, ended):
    """A task that catches its time limit and returns says how many items were finished."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        try:
            for row in self.track(range(100)):
                if row == 17:
                    raise SoftTimeLimitExceeded
        except SoftTimeLimitExceeded:
            return "partial"

    work()
    result = load.delay()
    state = ended(result)
    assert result.get() == "partial"
    assert state.progress.current == 17


def test_exception_closes_the_generator(app, work, ended):
    """A generator that was tracked is closed before the task's failure is recorded."""
    closed = threading.Event()

    def rows():
        try:
            yield from range(100)
        finally:
            closed.set()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        source = rows()
        self.keeps_it_alive = source
        for row in self.track(source):
            if row == 5:
                raise ValueError(row)

    work()
    assert ended(load.delay()).state == "FAILURE"
    assert closed.is_set()


def test_progress_of_an_ignored_run_is_kept(app, work, until):
    """A task that raises ``Ignore`` keeps the progress it made."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(2, 3)
        raise Ignore

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).state == "IGNORED" and now)
    assert (state.progress.current, state.progress.total) == (2, 3)


def test_retry_begins_a_new_progress_and_keeps_the_last(app, work, ended, gate, until):
    """The next attempt begins at nothing; what the last one had stands beside it."""
    second = gate()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        if not self.request.retries:
            self.progress.set(5, 9, "first")
            raise self.retry(countdown=0)
        second.wait()
        self.progress.set(1, 9, "second")

    work()
    result = load.delay()
    again = until(lambda: (now := result.task_state).attempt == 2 and now)
    assert again.progress is None
    assert again.last_progress.current == 5
    second.set()
    state = ended(result)
    assert (state.progress.current, state.last_progress.current) == (1, 5)


@pytest.mark.parametrize("place", ["threads-memory", "threads-sqlite"], indirect=True)
def test_retry_whose_next_attempt_begins_at_once_loses_nothing(app, work, ended, states_of):
    """Celery publishes a retry before it says so: RETRY and the progress are kept all the same."""
    begun = threading.Event()

    def hold_the_first(headers, **_):
        if headers["retries"]:
            assert begun.wait(10)

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        if self.request.retries:
            begun.set()
            return
        self.progress.set(5, 9)
        raise self.retry(countdown=0)

    work()
    celery_signals.after_task_publish.connect(hold_the_first)
    result = load.delay()
    state = ended(result)
    celery_signals.after_task_publish.disconnect(hold_the_first)
    assert states_of(result) == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
    assert state.last_progress.current == 5


def test_nonsense_is_refused_and_changes_nothing(app, work, ended):
    """A progress that means nothing raises in the task, and the one before it stays."""
    refused = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        self.progress.set(2, 3)
        for nonsense in (float("nan"), -1, "x", True):
            with pytest.raises(InvalidProgress) as raised:
                self.progress.set(nonsense)
            refused.append(raised.value.path)

    work()
    state = ended(load.delay())
    assert state.state == "SUCCESS"
    assert refused == ["current"] * 4
    assert state.progress.current == 2


def test_on_progress_gets_what_was_written(app, work, ended, until):
    """``on_progress`` of the task's class gets each progress after it was written."""
    got = []

    class Load(StatefulTask):
        def on_progress(self, progress):
            got.append(progress)

    go = threading.Event()

    @app.task(bind=True, base=Load)
    def load(self):
        self.progress.set(1, 2, "half")
        assert go.wait(10)

    work()
    result = load.delay()
    until(lambda: got)
    assert (got[0].current, got[0].message) == (1, "half")
    assert isinstance(got[0], Progress)
    go.set()
    ended(result)


def test_progressed_signal_says_whose_progress_it_is(app, work, ended, hear, gate, until):
    """``progressed`` carries task, id, attempt, client and progress."""
    heard, go = hear(signals.progressed), gate()

    @app.task(bind=True, base=StatefulTask, name="shop.load")
    def load(self):
        self.progress.set(1, 2)
        go.wait()

    work()
    result = load.apply_async(client_id="c-1")
    until(lambda: heard)
    go.set()
    ended(result)
    first = heard[0]
    assert (first.task, first.id, first.attempt) == ("shop.load", result.id, 1)
    assert (first.client_id, first.progress.current) == ("c-1", 1)


def test_last_progress_reaches_hook_and_signal(app, work, ended, hear, until):
    """The last value of a run, however short, reaches ``on_progress`` and ``progressed`` too."""
    heard, got = hear(signals.progressed), []

    class Load(StatefulTask):
        def on_progress(self, progress):
            got.append(progress.current)

    app.conf.statekit_progress_interval = 60.0

    @app.task(bind=True, base=Load)
    def load(self):
        self.progress.set(2, 2)

    work()
    ended(load.delay())
    until(lambda: heard and got)
    assert (heard[-1].progress.current, got[-1]) == (2, 2)


def test_raising_on_progress_does_not_change_an_ignored_run(app, work, until):
    """A hook that raises hurts nobody: a task that raised ``Ignore`` is ignored, not failed."""

    class Load(StatefulTask):
        def on_progress(self, progress):
            raise RuntimeError("a hook's fault")

    app.conf.statekit_progress_interval = 60.0

    @app.task(bind=True, base=Load)
    def load(self):
        self.progress.set(1, 2)
        raise Ignore

    work()
    result = load.delay()
    state = until(lambda: (now := result.task_state).state not in ("PENDING", "STARTED") and now)
    assert state.state == "IGNORED"


def test_progress_in_a_thread_of_ones_own(app, work, ended):
    """``self.progress``, taken in the task's thread, may be reported to from another."""

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        progress = self.progress
        thread = threading.Thread(target=lambda: progress.set(4, 5))
        thread.start()
        thread.join()

    work()
    assert ended(load.delay()).progress.current == 4


def test_self_progress_in_a_thread_of_ones_own_says_what_to_do(app, work, ended):
    """``self.progress`` asked for in a thread that runs no task is ``NotRunning``."""
    raised = []

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        def report():
            with pytest.raises(NotRunning) as error:
                self.progress.update()
            raised.append(error.value)

        thread = threading.Thread(target=report)
        thread.start()
        thread.join()

    work()
    ended(load.delay())
    assert raised[0].call == "progress"
    assert "self.progress" in str(raised[0])


@pytest.mark.parametrize("place", ["threads-memory", "threads-sqlite"], indirect=True)
def test_two_runs_of_one_task_do_not_mix(app, work, ended):
    """Two runs of one task at the same time each have a progress of their own."""
    both = threading.Barrier(2, timeout=10)

    @app.task(bind=True, base=StatefulTask)
    def load(self, n):
        for _ in self.track(range(n)):
            pass
        both.wait()
        self.progress.update(100)

    work()
    one, other = load.delay(1), load.delay(2)
    assert ended(one).progress.current == 101
    assert ended(other).progress.current == 102


def test_progress_after_the_end_changes_nothing(app, work, ended):
    """What a thread reports after its task's end is not written."""
    kept = SimpleNamespace()

    @app.task(bind=True, base=StatefulTask)
    def load(self):
        kept.progress = self.progress
        self.progress.set(1, 9)

    @app.task(base=StatefulTask)
    def later():
        kept.progress.set(8, 9)

    work()
    result = load.delay()
    before = ended(result)
    ended(later.delay())
    assert result.task_state == before
