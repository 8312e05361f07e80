"""The pages that start processes, carried out as their reader would."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tests.pages import CARRIED_OUT, Page, Reader

from celery_statekit import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TUTORIAL = "tutorial.md"


#: The server that pages name, each of which gets a database of its own.
REDIS = "redis://localhost"
#: What the pages use of it.
PROGRAMS = ("redis-cli",)


@pytest.mark.parametrize("name", CARRIED_OUT)
def test_what_the_page_says_works(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every file and command of the page, in its order, does and prints what the page says."""
    page = Page(name)
    missing = [each for each in PROGRAMS if each in page.text and shutil.which(each) is None]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"not on this machine: {', '.join(missing)}")
    servers = {REDIS: request.getfixturevalue("redis_url")} if REDIS in page.text else {}

    with Reader(tmp_path, servers) as reader:
        reader.carry_out(page)


def test_the_tutorial_shows_a_line_that_moves(tmp_path: Path) -> None:
    """While the task runs, the line shows numbers between nothing and all, in a worker's process."""
    with Reader(tmp_path) as reader:
        reader.carry_out(Page(TUTORIAL))
        line = reader.printed["python watch.py"]

    counts = [int(count) for count in re.findall(r"SAVING (\d+)/100 \(", line)]
    assert any(0 < count < 100 for count in counts)
    assert counts == sorted(counts)


def test_the_tutorial_says_where_its_records_are(tmp_path: Path) -> None:
    """In the file that the text names, and no other: it is SQLite's, and holds the task's record."""
    page = Page(TUTORIAL)
    named = re.search(r"SQLite\s+file\s+`([\w.]+)`", page.text)
    assert named is not None

    with Reader(tmp_path) as reader:
        reader.carry_out(page)

        store = open_store(f"sqlite:///{tmp_path}/{named[1]}")
        assert store.count("statekit:task")["SUCCESS"] == 2
        store.close()


OWN_APP = """app = Celery("shop", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue"}
"""


def test_the_tutorial_in_an_app_on_redis(tmp_path: Path, redis_url: str) -> None:
    """The same steps work in an app that has Redis, with nothing said of where records are kept."""
    own = f'app = Celery("shop", broker="{redis_url}", backend="{redis_url}")\n'

    with Reader(tmp_path, {OWN_APP: own}) as reader:
        reader.carry_out(Page(TUTORIAL))


def test_the_tutorial_in_an_app_on_rabbitmq(
    tmp_path: Path, rabbitmq_url: str, rabbitmq_queue: str
) -> None:
    """They work in an app without results, with the one line more that the text has for it."""
    page = Page(TUTORIAL)
    found = re.search(r"`(app\.conf\.statekit_store = \"sqlite:///)/tmp/(.+\")`", page.text)
    assert found is not None
    own = f"""app = Celery("shop", broker="{rabbitmq_url}")
app.conf.task_default_queue = "{rabbitmq_queue}"
{found[1]}{tmp_path}/{found[2]}
"""

    with Reader(tmp_path, {OWN_APP: own}) as reader:
        reader.carry_out(page)


def test_the_tutorial_takes_less_than_ten_minutes() -> None:
    """What is read and typed takes what the page says, and less than ten minutes."""
    page = Page(TUTORIAL)
    said = re.search(
        r"(\d+) words to read, .* (\d+) characters to type, .* make (\d+\.\d)\.",
        page.text,
        re.DOTALL,
    )

    assert said is not None
    assert said.groups() == (str(page.words), str(page.characters), f"{page.minutes:.1f}")
    assert page.minutes < 10
