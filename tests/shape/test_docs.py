"""The documents agree with the code; that their examples run is Sybil's part (``conftest.py``)."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from celery_statekit import errors, settings, signals

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
)
LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def ids(path: Path) -> str:
    """The path as a test's name."""
    return path.relative_to(ROOT).as_posix()


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


def test_each_error_stands_in_the_tree_at_the_top_of_its_module() -> None:
    """The tree of errors that the reference shows is complete, and names nothing else."""
    tree = re.findall(r"── (\w+)|^    (\w+)$", errors.__doc__ or "", re.MULTILINE)
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, errors.StatekitError)
        and not name.startswith("_")
    }

    assert {first or second for first, second in tree} == defined


def test_each_setting_has_its_line_in_the_reference() -> None:
    """Each field of the settings has a ``#:`` comment, which the reference shows."""
    source = Path(settings.__file__).read_text("utf-8")

    assert [
        field.name
        for field in dataclasses.fields(settings.Values)
        if not re.search(rf"#: .+\n    {field.name}: ", source)
    ] == []


def test_each_signal_has_its_line_in_the_reference() -> None:
    """Each signal has a ``#:`` comment, which the reference shows."""
    source = Path(signals.__file__).read_text("utf-8")
    names = re.findall(r"^(\w+) = Signal\(", source, re.MULTILINE)

    assert names
    assert [
        name for name in names if not re.search(rf"^#: .+\n{name} = ", source, re.MULTILINE)
    ] == []


def test_the_changelog_says_what_is_unreleased() -> None:
    """The changelog begins with what is not released yet, under the headings of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^### (.+)$", text, re.MULTILINE)

    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "[Unreleased]"
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
