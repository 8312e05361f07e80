"""The demo, run as a newcomer runs it: in a process of its own, without a server."""

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def output() -> str:
    """What the demo prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "celery_statekit.demo"],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_demo_shows_each_state(output):
    """Every state of the flow and the end are seen while they last, or in the history."""
    for state in ("PENDING", "STARTED", "FINDING", "READING", "RANKING", "SUCCESS"):
        assert re.search(rf"\| {state} +\| *[0-9.]+ s", output), state


def test_the_demo_shows_progress(output):
    """The last progress names how many files were read, of how many."""
    done, total = re.search(r"SUCCESS +(\d+)/(\d+) \(100 %\)", output).groups()

    assert done == total
    assert int(total) > 100


def test_the_demo_shows_a_refused_move(output):
    """The way back is refused, and what is allowed is said."""
    assert re.search(
        r"refused: demo\.index\[.*\] cannot move from READING to FINDING; allowed: RANKING", output
    )


def test_the_demo_prints_the_client(output):
    """The client who asked is JSON, and has the answer."""
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    client = json.loads(line)

    assert client["client_id"] == "newcomer"
    assert client["state"] == "ANSWERED"
    assert client["files"] > 100
    assert len(client["names"]) == 5


def test_the_demo_draws_the_flow(output):
    """The Mermaid text of the flow comes last."""
    _, diagram = output.split("stateDiagram-v2")

    assert "s_FINDING --> s_READING" in diagram
    assert "s_READING --> s_RANKING" in diagram
