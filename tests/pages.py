"""A page of the docs, carried out as its reader would: files are written, commands are run.

A fenced block whose first line is a comment with a file's name is that file; ``# name, further
down`` goes on with it. In a ``console`` block each line that begins with ``$`` is a command, and
what follows it is what it prints, as in doctest (``...`` stands for anything). A worker runs
until its ``^C``, or the page's end.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

DOCS: Final = Path(__file__).parents[1] / "docs"
#: The pages that start processes; all others are run inside the tests' own process.
CARRIED_OUT: Final = (
    "tutorial.md",
    "howto/django.md",
    "howto/migrate.md",
    "howto/store.md",
    "howto/test.md",
    "howto/uninstall.md",
)
#: Languages of blocks that are only shown; what is SQL, a test of its own runs.
NOT_RUN: Final = ("sql", "text")
#: Seconds in which a command has to end.
PATIENCE: Final = 60.0
#: Words a minute that are read, and characters a minute that are typed, by somebody unhurried.
READ, TYPED = 250, 150

_FENCE: Final = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE: Final = re.compile(r"# ([\w./-]+\.\w+)(, further down)?\n")
_HIDDEN: Final = re.compile(r"<!--.*?-->", re.DOTALL)
_EXPECTED: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str
    #: Number of its first line in the page.
    line: int

    @property
    def file(self) -> re.Match[str] | None:
        """What names the file that it is, if it is one."""
        return _FILE.match(self.text)


class Command(NamedTuple):
    """A command that a reader types."""

    words: str
    #: What it prints.
    output: str


class Page:
    """A page's text, and what there is to do."""

    def __init__(self, path: str | Path) -> None:
        self.path = DOCS / path
        self.text = self.path.read_text("utf-8")
        self.blocks = [
            Block(found[1].strip(), found[2], self.text.count("\n", 0, found.start()) + 2)
            for found in _FENCE.finditer(self.text)
        ]

    @property
    def words(self) -> int:
        """Words to read: all but what is typed."""
        shown = _FENCE.sub("", _HIDDEN.sub("", self.text))
        outputs = [command.output for block in self.blocks for command in commands(block)]
        return sum(len(re.findall(r"\w\S*", text)) for text in (shown, *outputs))

    @property
    def characters(self) -> int:
        """Characters to type: the files, without the lines that name them, and the commands."""
        files = [block.text[block.file.end() :] for block in self.blocks if block.file]
        typed = [command.words for block in self.blocks for command in commands(block)]
        # Not the blanks that an editor puts before a line.
        lines = [line.strip() for text in (*files, *typed) for line in text.splitlines()]
        return sum(len(line) + 1 for line in lines)

    @property
    def minutes(self) -> float:
        """What it takes to read the page and to type what it says."""
        return self.words / READ + self.characters / TYPED


def commands(block: Block) -> Iterator[Command]:
    """The commands of a ``console`` block."""
    if block.language != "console":
        return
    for part in re.split(r"^(?=\$ |\^C$)", block.text, flags=re.MULTILINE):
        if part:
            typed, _, output = part.partition("\n")
            yield Command(typed.removeprefix("$ "), output)


class Reader:
    """Somebody who does what a page says, in an empty folder; a context manager."""

    def __init__(self, folder: Path, replaced: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        #: What the page says, and what stands for it here.
        self.replaced = {"/tmp/": f"{folder}/", **(replaced or {})}
        #: What each command printed, by its words.
        self.printed: dict[str, str] = {}
        self._workers: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    def carry_out(self, page: Page) -> None:
        """Do everything that the page says, in order."""
        for block in page.blocks:
            where = f"{page.path.name}:{block.line}"
            text = block.text
            for shown, real in self.replaced.items():
                text = text.replace(shown, real)
            if block.file:
                self._write(text)
            elif block.language == "console":
                for command in commands(block._replace(text=text)):
                    self._type(command, where)
            else:
                assert block.language in NOT_RUN, f"{where}: nobody runs this block"

    def _write(self, text: str) -> None:
        named = _FILE.match(text)
        assert named is not None
        path = self.folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if named[2] else "w", encoding="utf-8") as file:
            # Python takes a module for the one it has compiled if it has its size and its second.
            file.write(("\n\n" if named[2] else "") + text[named.end() :])
        for compiled in path.parent.glob("__pycache__/*"):
            compiled.unlink()

    def _type(self, command: Command, where: str) -> None:
        words, expected = command
        if words == "^C":
            self._interrupt(where)
        elif words.startswith("pip install"):
            self._install(words.split()[-1])
        elif re.match(r"celery .*\bworker\b", words):
            self._start(words)
        else:
            printed = self._run(words, where)
            checker = doctest.OutputChecker()
            assert not expected or checker.check_output(expected, as_shown(printed), _EXPECTED), (
                f"{where}: $ {words}\n{printed}\ninstead of\n{expected}"
            )

    def _run(self, words: str, where: str) -> str:
        ended = subprocess.run(
            ["bash", "-c", words],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        # Not what goes to stderr: redis-py and Celery complain there while Python shuts down.
        printed = ended.stdout.decode()
        said = f"{printed}\n{ended.stderr.decode()}\n{self._log()}"
        assert ended.returncode == 0, f"{where}: $ {words}\n{said}"
        self.printed[words] = printed
        return printed

    def _install(self, what: str) -> None:
        """Install what the page has written; what it takes from elsewhere is there already."""
        if what != ".":
            assert version(re.split(r"[\[<>=~]", what)[0])
            return
        offline = "--quiet --no-deps --no-build-isolation --disable-pip-version-check"
        self._run(f"python -m pip install {offline} --target .installed .", "pip")

    def _start(self, words: str) -> None:
        self._logs.append(self.folder / f"worker{len(self._logs)}.log")
        with self._logs[-1].open("wb") as log:
            worker = subprocess.Popen(
                ["bash", "-c", f"exec {words}"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._workers.append(worker)

    def _interrupt(self, where: str) -> None:
        worker = self._workers[-1]
        deadline = time.monotonic() + PATIENCE
        # One that is about to start has not yet said what an interrupt shall do.
        while "[queues]" not in self._log() and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(PATIENCE)
        ended = worker.returncode is not None
        assert ended, f"{where}: the worker did not end\n{self._log()}"

    def _log(self) -> str:
        """What the newest worker has said."""
        return self._logs[-1].read_text("utf-8", "replace") if self._logs else ""

    def _environment(self) -> dict[str, str]:
        kept = ("HOME", "LANG", "LC_ALL", "PATH", "TMPDIR", "USER")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        programs = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        installed = self.folder / ".installed"
        return {**environment, "PATH": programs, "PYTHONPATH": str(installed)}


def as_shown(printed: str) -> str:
    """What a terminal shows of it: what follows a carriage return stands over what was there."""
    lines = []
    for line in printed.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return "\n".join(lines)
