"""Replies of a real server that never arrive: each acknowledged update is applied exactly once."""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from soak.ledger import Ledger, ledger_of, post

from celery_statekit import Clients
from celery_statekit.stores import open_store
from celery_statekit.testing import FaultProxy, HistoryReport, Kept, Operation, check_history

#: Replies lost in each test.
LOST = 10_000 if os.environ.get("STATEKIT_SOAK") == "long" else 300
WRITERS = 4
LEDGERS = 10


#: Seconds in which they have to be lost.
PATIENCE = 1200.0 if LOST > 1000 else 50.0


def updated(url: str, every: int, name: str, matching: bytes) -> tuple[HistoryReport, int]:
    """What updates show of which every so many lose the reply to their write."""
    with FaultProxy(url) as proxy, closing(open_store(url)) as store:
        proxy.lose_replies(every=every, matching=matching)
        deadline = time.monotonic() + PATIENCE

        def write(writer: int) -> list[Operation]:
            told = []
            with closing(open_store(proxy.url)) as lossy:
                clients = Clients(lossy, Ledger, prefix=name, deadline=30.0)
                while proxy.done["lost"] < LOST and time.monotonic() < deadline:
                    operation = f"{name}.{writer}.{len(told)}"
                    told.append(post(clients, ledger_of(operation, LEDGERS), operation))
            return told

        with ThreadPoolExecutor(WRITERS) as pool:
            operations = [one for told in pool.map(write, range(WRITERS)) for one in told]
        clients = Clients(store, Ledger, prefix=name)
        kept = {}
        for number in range(LEDGERS):
            ledger = clients.get(f"ledger-{number}")
            kept[ledger.client_id] = Kept(ledger.count, [ledger.last])
            clients.delete(ledger.client_id)
        return check_history(operations, kept), proxy.done["lost"]


@pytest.mark.parametrize(
    ("server", "every"),
    [("redis", 1), ("redis", 3), ("postgresql", 1), ("postgresql", 3), ("mariadb", 3)],
)
@pytest.mark.timeout(PATIENCE + 60)
def test_updates_are_applied_exactly_once(
    request: pytest.FixtureRequest, server: str, every: int
) -> None:
    """The reply is lost after the server has written; nobody else can tell the writer."""
    url = request.getfixturevalue(f"{server}_url")
    name = f"lost{uuid.uuid4().hex[:12]}"
    # Only what writes a ledger's new version names the update. MariaDB writes by several
    # statements: with the reply to any but the last one the whole transaction is gone.
    matching = b"COMMIT" if server == "mariadb" else f"{name}.".encode()
    report, lost = updated(url, every, name, matching)

    assert lost >= LOST
    assert report.violations == []
    assert report.acknowledged > LOST // 2
