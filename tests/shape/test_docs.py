"""The documents agree with the code; that their examples run is Sybil's part (``conftest.py``)."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest
from celery import Celery
from sqlalchemy import create_engine, inspect, text
from tests.pages import CARRIED_OUT, DOCS, NOT_RUN, Page

import celery_statekit
from celery_statekit import (
    Clients,
    ClientState,
    StatefulTask,
    errors,
    record,
    settings,
    setup,
    signals,
    stores,
    testing,
)
from celery_statekit.cli import statekit
from celery_statekit.states import Flow, task_flow
from celery_statekit.stores import open_store

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted(
    path for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")] if "_build" not in path.parts
)
LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def ids(path: Path) -> str:
    """The path as a test's name."""
    return path.relative_to(ROOT).as_posix()


def table(name: str, first: str) -> dict[str, list[str]]:
    """The rows of a page's table whose head begins with ``first``, by their first cell."""
    lines = Page(name).text.splitlines()
    begin = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows: dict[str, list[str]] = {}
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            return rows
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows[cells[0].replace("\\|", "|").strip("`")] = cells[1:]
    return rows


# --- form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_each_link_to_a_file_leads_somewhere(path: Path) -> None:
    """A relative link in a document is a file of the repository."""
    links = LINK.findall(path.read_text("utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_no_example_is_shown_and_not_run(path: Path) -> None:
    """No ``python`` block is skipped, or hidden from the runner by another name."""
    text = path.read_text("utf-8")

    assert re.findall(r"skip: (?:next|start)", text) == []
    assert re.findall(r"^```(?:py|python3|pycon|\{code-block\} *py\w*)$", text, re.MULTILINE) == []


@pytest.mark.parametrize("name", CARRIED_OUT)
def test_each_block_of_a_page_that_is_carried_out_is_a_file_or_a_command(name: str) -> None:
    """What would not be written or run is of a language that nobody takes for an example."""
    shown = [block for block in Page(name).blocks if not block.file]

    assert {block.language for block in shown} <= {"console", *NOT_RUN}


def test_each_page_is_in_a_table_of_contents() -> None:
    """Whoever reads the site page by page comes to each page, once."""
    listed = []
    for path in DOCS.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed += [(path.parent / f"{entry}.md").resolve() for entry in entries]

    pages = [path for path in DOCUMENTS if DOCS in path.parents and path != DOCS / "index.md"]
    assert sorted(listed) == sorted(pages)


def test_readme_is_short() -> None:
    """README is read in one go: fewer than 150 lines."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def test_readme_names_only_targets_that_exist() -> None:
    """Each ``make`` command in README and CONTRIBUTING is a target that ``make help`` lists."""
    listed = subprocess.run(
        ["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    named = {
        target
        for name in ("README.md", "CONTRIBUTING.md")
        for target in re.findall(r"\bmake ([a-z]+)\b", (ROOT / name).read_text("utf-8"))
    }

    assert named - set(re.findall(r"^make (\w+)", listed, re.MULTILINE)) - {"sure", "it"} == set()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("furo") is None, reason="needs the extra 'docs'")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Sphinx finds nothing wrong, and asks nothing of the network."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )

    assert built.stderr == ""
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text()
        )
        assert loaded == [], page.name


# --- the reference -------------------------------------------------------------------------------


def documented() -> Iterator[Any]:
    """What autodoc shows: the objects that the pages of the reference name, and modules' members."""
    for path in (DOCS / "reference").glob("*.md"):
        shown = re.findall(
            r"^\.\. auto(\w+):: (\S+)((?:\n +:?\S.*)*)", path.read_text("utf-8"), re.MULTILINE
        )
        for kind, name, options in shown:
            if kind != "module":
                module, _, attribute = name.rpartition(".")
                yield getattr(importlib.import_module(module), attribute)
                continue
            module = importlib.import_module(name)
            yield module
            listed = re.search(r":members:(.*(?:\n {6,}\S.*)*)", options)
            left_out = re.search(r":exclude-members:(.*)", options)
            if listed:
                words = re.findall(r"\w+", listed[1])
                names = words or getattr(module, "__all__", None) or vars(module)
                excluded = re.findall(r"\w+", left_out[1]) if left_out else []
                yield from (getattr(module, each) for each in names if each not in excluded)


def test_each_public_name_is_in_the_reference() -> None:
    """Whatever a package offers in ``__all__``, and each error and signal, is described."""
    shown = {id(each) for each in documented()}
    public = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in (celery_statekit, stores, testing)
        for name in package.__all__
    }
    table_of_errors = table("reference/errors.md", "error")

    assert [name for name, value in public.items() if id(value) not in shown] == []
    assert set(table_of_errors) == set(errors_defined())


def errors_defined() -> dict[str, type[errors.StatekitError]]:
    """Each error, by its name."""
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, errors.StatekitError)
        and not name.startswith("_")
    }


def test_each_method_of_a_task_is_in_the_reference() -> None:
    """What ``StatefulTask`` offers to a task's author is listed, but for what Celery calls."""
    (listed,) = re.findall(
        r"StatefulTask\n   :members: ([\w, \n]+?)\n(?:\.\.|   :|```)",
        Page("reference/tasks.md").text,
    )
    celerys = {"Request", "backend", "on_bound", "on_replace"}
    ours = {"hears_changes", "is_stateful", "own_backend", "shows_started"}
    own = {name for name in vars(StatefulTask) if not name.startswith("_")}

    assert set(re.findall(r"\w+", listed)) == own - celerys - ours


def test_each_error_stands_in_the_tree_at_the_top_of_its_module() -> None:
    """The tree of errors that the reference shows is complete, and names nothing else."""
    tree = re.findall(r"── (\w+)|^    (\w+)$", errors.__doc__ or "", re.MULTILINE)

    assert {first or second for first, second in tree} == set(errors_defined())


@pytest.mark.parametrize("name", errors_defined())
def test_each_error_has_its_attributes_in_the_reference(name: str) -> None:
    """The table of errors names the facts that each carries, in their order."""
    attributes, when = table("reference/errors.md", "error")[name]

    assert tuple(re.findall(r"\w+", attributes)) == errors_defined()[name]._facts
    assert when


def test_each_setting_is_in_the_reference() -> None:
    """The table of settings has the names, types and defaults of the code, and a unit for numbers."""
    rows = table("reference/settings.md", "setting")
    fields = {f"statekit_{field.name}": field for field in dataclasses.fields(settings.Values)}

    assert list(rows) == list(fields)
    for name, (kind, default, unit, what) in rows.items():
        field = fields[name]
        shown = f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
        assert kind == field.type.replace(" | ", " or "), name
        assert default == f"`{shown}`", name
        assert what, name
        if kind in ("int", "float"):
            assert re.match(r"(seconds|bytes|changes), over 0", unit), name


def test_each_setting_has_its_line_in_the_code() -> None:
    """Each field of the settings has a ``#:`` comment, which the reference shows."""
    source = Path(settings.__file__).read_text("utf-8")

    assert [
        field.name
        for field in dataclasses.fields(settings.Values)
        if not re.search(rf"#: .+\n    {field.name}: ", source)
    ] == []


def test_each_signal_is_in_the_reference() -> None:
    """Each signal has a ``#:`` comment, which the reference shows, and a row in its table."""
    source = Path(signals.__file__).read_text("utf-8")
    names = re.findall(r"^(\w+) = Signal\(", source, re.MULTILINE)

    assert names
    assert set(table("reference/signals.md", "signal")) == set(names)
    assert [
        name for name in names if not re.search(rf"^#: .+\n{name} = ", source, re.MULTILINE)
    ] == []


def test_each_command_is_in_the_reference() -> None:
    """Each command, and each of its options with its default, is described as click has it."""
    page = Page("reference/cli.md").text
    context = click.Context(statekit)
    assert statekit.commands
    for name, command in statekit.commands.items():
        assert f"## `celery -A proj statekit {name}`" in page
        section = page.partition(f"statekit {name}`\n")[2].partition("\n## ")[0]
        rows = {
            cells[1].strip(" `"): cells[2].strip()
            for cells in (line.split("|") for line in section.splitlines())
            if len(cells) == 5 and cells[1].startswith(" `")
        }
        own = [
            option
            for option in command.get_params(context)
            if option.name not in ("app", "broker", "result_backend", "loader", "config")
        ]
        own = [option for option in own if option.opts[-1] in command.get_help(context)]
        assert set(rows) == {option.opts[0] for option in own}, name
        for option in own:
            if getattr(option, "show_default", False):
                assert rows[option.opts[0]] == str(option.default), option.opts


# --- records and keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        ("of a task", record._TASK_FIELDS),
        ("of a change", record._CHANGE_FIELDS),
    ],
)
def test_each_field_of_a_record_is_in_the_reference(first: str, fields: record._Fields) -> None:
    """The tables of what is stored name each field, and what readers know it as."""
    rows = table("reference/records.md", first)
    stored = {name: seen for seen, (name, _) in fields.items()}
    described = {name: re.findall(r"`(\w+)`", seen)[0] for name, (seen,) in rows.items()}

    assert {name: seen for name, seen in described.items() if name in stored} == stored
    assert set(described) - set(stored) <= {record.FORGOTTEN}


def test_each_field_of_the_envelope_is_in_the_reference() -> None:
    """So are the fields around a document."""
    rows = table("reference/records.md", "in the JSON")

    assert set(rows) == {stored for stored, _ in record._RECORD_FIELDS.values()}


def test_each_key_in_redis_is_in_the_reference(redis_url: str) -> None:
    """What the store makes in Redis has a row in the table of keys, and the type that it says."""
    rows = table("reference/records.md", "Redis key")
    store = open_store(redis_url)
    clients = Clients(store, ClientState, ttl=60)
    clients.create("c-1")
    clients.update("c-1", lambda client: client.enter("IN_PROGRESS"))
    app = setup(Celery("docs", broker="memory://", set_as_current=False))
    app.conf.statekit_store = redis_url

    @app.task(name="docs.load")
    def load() -> None:
        """Nothing."""

    load.apply(client_id="c-1")
    found: dict[str, str] = {}
    with clients.exclusive("c-1"):
        server = importlib.import_module("redis").Redis.from_url(redis_url, decode_responses=True)
        for key in server.scan_iter("statekit:*"):
            name = re.sub(r"^statekit:(task|client:ClientState)", "<kind>", key)
            name = re.sub(r"^<kind>:[^|]+", "<key>", name)
            name = re.sub(r"\|(state|client):.+", r"|\1:<\1>", name)
            found[name] = {"zset": "sorted set"}.get(server.type(key), server.type(key))
        server.close()
    store.close()

    named = {
        key: kind
        for keys, (kinds, _) in rows.items()
        for key, kind in zip(keys.split("`, `"), kinds.split(", ") * 3, strict=False)
    }
    assert found.items() <= named.items()
    assert {"<key>", "<key>|lease", "<kind>|client:<client>", "<kind>|expiry"} <= set(found)


def test_the_tables_in_sql_are_in_the_reference(postgresql_url: str) -> None:
    """The tables of a SQL store are those of the page, and what uninstalling says drops them all."""
    store = open_store(postgresql_url)
    Clients(store, ClientState).create("c-1")
    store.close()
    engine = create_engine(postgresql_url)
    made = {name for name in inspect(engine).get_table_names() if name.startswith("statekit")}
    (drops,) = [
        block.text for block in Page("howto/uninstall.md").blocks if block.language == "sql"
    ]

    named = {name for row in table("reference/records.md", "table") for name in row.split("`, `")}
    assert made == named
    with engine.begin() as connection:
        connection.execute(text(drops))
    left = {name for name in inspect(engine).get_table_names() if name.startswith("statekit")}
    engine.dispose()
    assert left == set()


# --- explanation ---------------------------------------------------------------------------------


def test_the_pictures_are_drawn_from_the_table() -> None:
    """Diagram and table of a task's life are what the code makes of the states that the page has."""
    page = Page("explanation/states.md")
    declared = next(block for block in page.blocks if block.language == "python")
    namespace: dict[str, Any] = {}
    exec(declared.text, namespace)
    flow = task_flow(Flow.of(namespace["Import"]))

    (diagram,) = [block.text for block in page.blocks if block.language == "mermaid"]
    assert diagram == flow.mermaid() + "\n"
    assert f"\n\n{flow.markdown()}\n\n" in page.text


def test_the_words_of_the_glossary_are_in_its_order() -> None:
    """Each word is explained once."""
    words = re.findall(r"^(\w[\w ]*)\n: ", Page("glossary.md").text, re.MULTILINE)

    assert len(words) == len(set(words)) > 20


def test_the_changelog_says_what_is_unreleased() -> None:
    """The changelog begins with what is not released yet, under the headings of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)

    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "[Unreleased]"
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
