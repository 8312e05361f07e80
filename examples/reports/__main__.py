"""A task that is a class, on a worker whose pool grows and shrinks."""

from __future__ import annotations

from celery_statekit import Clients, StatefulResult
from examples.reports.app import Ledger, Month, Reporting, app, monthly_report
from examples.workers import Worker, arguments, running, wait_until


def show(*results: StatefulResult[int]) -> None:
    """Print where each report stands."""
    for result in results:
        state = result.task_state
        print(f"  {state.id}: {state.state}, attempt {state.attempt}")


def resize(worker: Worker, by: int) -> None:
    """Let the worker's pool grow, or shrink where ``by`` is negative, and wait until it has."""
    size = processes(worker) + by
    change = app.control.pool_grow if by > 0 else app.control.pool_shrink
    one = {"destination": [worker.name], "reply": True, "timeout": 30, "limit": 1}
    # It is refused while all processes are busy; one may be so for a moment after its task's end.
    wait_until(lambda: "ok" in change(abs(by), **one)[0][worker.name])
    wait_until(lambda: processes(worker) == size)
    print(f"  {worker.name} has {size} processes")


def processes(worker: Worker) -> int:
    """How many processes the worker's pool has: so many tasks it runs at once."""
    stats = app.control.inspect([worker.name], timeout=30, limit=1).stats()
    return len(stats[worker.name]["pool"]["processes"])


def story(worker: Worker) -> None:
    """Send three reports to a worker of two processes."""
    months = Clients(app, Month)
    for month in ("may", "june", "july"):
        months.create(month, sales=[10, 20, 30])

    print("The id of May's report is chosen before it is sent:")
    may = monthly_report.AsyncResult("report-may")
    show(may)
    may = monthly_report.apply_async(["may"], task_id="report-may")
    june = monthly_report.apply_async(["june"], task_id="report-june")
    for result in (may, june):
        result.wait(until=Reporting.COLLECTING, timeout=30)
    july = monthly_report.apply_async(["july"], task_id="report-july")
    show(may, june, july)

    print("\nThe pool grows while two of them run:")
    resize(worker, +1)
    july.wait(until=Reporting.COLLECTING, timeout=30)
    show(may, june, july)

    print('\nMay is closed. Its report calls update_state(state="SUCCESS"), and goes on:')
    months.update("may", lambda month: month.enter(Ledger.CLOSED))
    state = may.wait(until=Reporting.WRITING, timeout=30)
    wait_until(lambda: may.state == "WRITING")  # Celery is told a moment later
    print(
        f"  Celery's state: {may.state}, ready: {may.ready()}, progress: {state.progress.message}"
    )
    months.update("may", lambda month: month.enter(Ledger.SIGNED))
    print(f"  signed; its total: {may.get(timeout=30)}")
    print("  its history:", *[change.to_state for change in may.history()])

    print("\nThe pool shrinks while two of them run:")
    resize(worker, -1)
    show(june, july)
    for month, result in (("june", june), ("july", july)):
        months.update(month, lambda month: month.enter(Ledger.CLOSED))
        months.update(month, lambda month: month.enter(Ledger.SIGNED))
        total = result.get(timeout=30)
        ran_in = {change.worker for change in result.history() if change.worker}
        print(f"  {result.id}: {total}, in {len(ran_in)} process from its start to its end")


def main() -> None:
    """Tell the story."""
    with running(app, arguments(__doc__)) as (worker,):
        story(worker)


if __name__ == "__main__":
    main()
