"""What ends the processes of a test run that is gone, and removes what they wrote."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

#: Kills the process group it was last told of and removes the folder, as soon as its input ends.
GUARD: Final = """
PATH=/usr/bin:/bin
while read -r line && [ "$line" != end ]; do group=$line; done
[ -n "$group" ] && kill -9 "-$group"
rm -rf -- "$0"
"""
#: Tells the guard what group it leads before it becomes the command: there is no moment at which
#: the command runs and the guard does not know of it.
TELL: Final = 'echo "$$" >&0; exec "$@" < /dev/null'


class Guard:
    """Ends a process group, and removes a folder, when whoever made the guard is gone.

    A process of its own, for a run that is killed ends nothing itself.
    """

    def __init__(self, folder: Path) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what kills the tests must not kill it
        )

    def start(self, command: list[str], **surroundings: Any) -> subprocess.Popen[bytes]:
        """Start a command as the process group that is to be ended, in place of the one before.

        Args:
            command: the program and its arguments.
            surroundings: of it, in the words of ``Popen``.
        """
        return subprocess.Popen(
            ["/bin/sh", "-c", TELL, "sh", *command],
            stdin=self._shell.stdin,
            start_new_session=True,
            **surroundings,
        )

    def close(self) -> None:
        """Remove the folder now, and end no process; nothing happens the second time."""
        if self._shell.poll() is None:
            assert self._shell.stdin is not None
            with suppress(BrokenPipeError):
                self._shell.stdin.write(b"\nend\n")
                self._shell.stdin.flush()
        self._shell.communicate()


def new_folder() -> Path:
    """An empty folder that every user may look into."""
    folder = Path(tempfile.mkdtemp(prefix="celery-statekit-"))
    folder.chmod(0o755)
    return folder
