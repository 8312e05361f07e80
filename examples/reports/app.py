"""The reports' app: a task that is a class."""

from __future__ import annotations

from celery import Celery

from celery_statekit import ClientState, StatefulTask, States

app = Celery("reports")


class Ledger(States):
    """Where the ledger of a month stands."""

    OPEN = "Sales are still booked"
    CLOSED = "The month is over"
    SIGNED = "Somebody has looked at it"


class Month(ClientState, states=Ledger):
    """The sales of one month."""

    sales: list[int] = []


class Reporting(States):
    """What a report goes through."""

    COLLECTING = "Waiting for the last sales"
    WRITING = "Waiting for the signature"


class MonthlyReport(StatefulTask):
    """Sums up a month."""

    name = "reports.monthly"
    bind = True
    states = Reporting

    def run(self, month: str) -> int:
        """Return the total of ``month``, once its ledger is closed and signed."""
        self.enter(Reporting.COLLECTING)
        ledgers = self.clients(Month).watch(month)
        closed = next(ledger for ledger in ledgers if ledger.state != "OPEN")
        total = sum(self.track(closed.sales))
        # Old code says so when a part is done. Here it is progress, not the task's end.
        self.update_state(state="SUCCESS", meta={"status": "added up"})
        self.enter(Reporting.WRITING)
        ledgers = self.clients(Month).watch(month)
        next(ledger for ledger in ledgers if ledger.state == "SIGNED")
        return total


monthly_report = MonthlyReport()
app.tasks.register(monthly_report)
