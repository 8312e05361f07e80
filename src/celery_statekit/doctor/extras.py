"""What a server needs to be reached, and which extra installs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

from celery_statekit.derived import REDIS
from celery_statekit.doctor.finding import Finding


def lacking(name: str, url: str) -> Iterator[Finding]:
    """The package that is missing for a broker or result backend, if one is."""
    scheme = url.partition("://")[0].lower()
    for package, extra in _needs(scheme):
        if not _is_installed(package):
            found = f"{scheme}:// cannot be reached: the package {package} is not installed"
            yield Finding.must(name, found, f"pip install celery-statekit[{extra}]")
            return


def _is_installed(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def _needs(scheme: str) -> Iterator[tuple[str, str]]:
    """Packages, in the order in which they are missed, and the extra that installs each."""
    if scheme in REDIS:
        yield "redis", "redis"
    sql = re.fullmatch(r"(?:db|sqla|sqlalchemy)\+(\w+)(?:\+(\w+))?", scheme)
    if sql is None:
        return
    extra = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}.get(sql[1], "sql")
    yield "sqlalchemy", extra
    if sql[2] in ("psycopg", "pymysql"):  # the drivers that the extras install
        yield sql[2], extra
