"""Django's SQLite, whose transactions take the file's lock when they begin.

One that begins by reading is refused at once where another process writes; Django has a setting for
it from 5.1 on.
"""

from __future__ import annotations

from django.db.backends.sqlite3 import base


class DatabaseWrapper(base.DatabaseWrapper):
    def _start_transaction_under_autocommit(self) -> None:
        self.cursor().execute("BEGIN IMMEDIATE")
