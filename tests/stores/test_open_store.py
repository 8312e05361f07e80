"""``open_store``: from a URL to a store, or to an error that says what is allowed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from celery_statekit import stores
from celery_statekit.errors import InvalidSetting
from celery_statekit.record import Limits, Record
from celery_statekit.stores import MemoryStore, SQLiteStore, open_store, without_password


def foreign(url, *, limits, timeout):
    """A factory as another distribution would have it."""
    store = MemoryStore(f"foreign {timeout}", limits)
    store.name = url
    return store


def no_store(url, *, limits, timeout):
    """A factory that makes something else."""
    return {"url": url, "limits": limits, "timeout": timeout}


@pytest.fixture
def installed(monkeypatch):
    """Makes entry points of other distributions."""

    def install(**factories):
        points = EntryPoints(
            EntryPoint(name, value, stores.ENTRY_POINTS) for name, value in factories.items()
        )
        monkeypatch.setattr(stores, "entry_points", points.select)

    monkeypatch.setitem(sys.modules, "statekit_foreign", sys.modules[__name__])
    return install


@pytest.mark.parametrize("url", ["memory://shop", "MEMORY://shop"])
def test_memory(url: str) -> None:
    """``memory://name`` is the memory store of that name."""
    store = open_store(url)

    assert isinstance(store, MemoryStore)
    assert store.name == "memory://shop"
    assert open_store("memory://").name == "memory://"


def test_a_relative_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes: from the working directory."""
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///states.db")
    store.write(Record.first("key", {}), expect=None)
    store.close()

    assert isinstance(store, SQLiteStore)
    assert (tmp_path / "states.db").exists()


@pytest.mark.parametrize("name", ["states.db", "a b%20c#d@e:f.db", "\u00e9.db"])
def test_an_absolute_file(tmp_path: Path, name: str) -> None:
    """Four slashes: the path as it is, nothing in it decoded; the store's name opens it again."""
    store = open_store(f"sqlite:///{tmp_path / name}")
    record = Record.first("key", {})
    store.write(record, expect=None)
    store.close()
    again = open_store(store.name)

    assert again.read("key") == record
    assert (tmp_path / name).exists()
    again.close()


def test_limits_and_timeout_are_the_stores() -> None:
    """What is given is used, and nothing given is the defaults."""
    limits = Limits(record_bytes=100)

    assert open_store("memory://", limits=limits).limits is limits
    assert open_store("sqlite:///x.db", limits=limits, timeout=1.5).limits is limits
    assert open_store("memory://").limits == Limits()
    with pytest.raises(InvalidSetting, match="timeout"):
        open_store("sqlite:///x.db", timeout=0)


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        b"memory://",
        "",
        "memory",
        "://",
        "/var/lib/states.db",
        "sqlite:states.db",
        "sqlite://",
        "sqlite:///",
        "sqlite://states.db",
        "sqlite://host/states.db",
        "sqlite:///:memory:",
        "sqlite:///states.db?timeout=5",
        "sqlite:///a\nb",
        "memory://a/b",
        "memory://a?b=c",
        "amqp://localhost",
        "oracle://localhost/states",
        "file:///states.db",
    ],
)
def test_what_is_no_url_of_a_store(url: object) -> None:
    """InvalidSetting names the setting, what was given and what this release has."""
    with pytest.raises(InvalidSetting) as raised:
        open_store(url)

    assert raised.value.path == "statekit_store"
    assert "memory://name, sqlite:///relative.db, sqlite:////abs/path.db" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://:hunter2@localhost:5672/0",
        "redis://user:hunter2@localhost/shop",
        "redis://:hunter2@localhost:port",
        "redis://:hunter2@localhost:6379/0?ssl=no",
        "sentinel://:hunter2@localhost/0;sentinel://:hunter2@localhost:port/0",
        "redis://user:p@ss/hunter2@localhost",
        "redis://localhost/0?pass=hunter2&db=1",
        "statekit://:hunter2@localhost:port",
        "statekit://localhost:hunter2/0",
        "statekit://:hunter2@[::1",
        "user:hunter2@localhost",
        "memory://user:hunter2@host",
    ],
)
def test_a_password_is_not_shown(installed, url: str) -> None:
    """Neither in the message nor in an error behind it."""
    installed(statekit="statekit_foreign:foreign")
    with pytest.raises(InvalidSetting) as raised:
        open_store(url)

    assert "hunter2" not in f"{raised.value!r} {raised.value} {raised.value.__cause__}"
    assert "localhost" in str(raised.value) or "***" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:hunter2@127.0.0.1:hunter2/shop",
        "postgresql://shop:hunter2@[::1/shop",
        "mysql://shop:hunter2@127.0.0.1:9x/hunter2",
        "redis://shop:hunter2/x@127.0.0.1:1/0",
        "redis://shop:hunter2@127.0.0.1:9x/0",
    ],
)
def test_a_password_is_in_no_error_behind_the_error(url: str) -> None:
    """What collects errors follows causes and contexts, also those that no traceback shows."""
    with pytest.raises(InvalidSetting) as caught:
        open_store(url)

    errors: list[BaseException | None] = [caught.value]
    for error in errors:
        if error is not None:
            assert "hunter2" not in f"{error} {error!r}"
            errors += [error.__cause__, error.__context__]


def test_what_may_be_shown_of_a_url() -> None:
    """A URL without secrets is shown as it is."""
    assert without_password("redis://localhost:6379/0") == "redis://localhost:6379/0"
    assert without_password("redis://:x@localhost:6379/0") == "redis://***@localhost:6379/0"
    assert without_password("a://b/?token=x&db=1") == "a://b/?token=***&db=1"


def test_a_store_of_another_distribution(installed) -> None:
    """An entry point's name is a scheme; its factory is given URL, limits and timeout."""
    installed(foreign="statekit_foreign:foreign")
    limits = Limits(record_bytes=100)
    store = open_store("foreign://host:1234/x", limits=limits, timeout=2.5)

    assert store.name == "foreign://host:1234/x"
    assert store.limits is limits


def test_installed_stores_are_named_in_errors(installed) -> None:
    """What is allowed is what is there."""
    installed(foreign="statekit_foreign:foreign")

    with pytest.raises(InvalidSetting, match="foreign://"):
        open_store("amqp://localhost")


def test_an_installed_store_does_not_take_our_schemes(installed) -> None:
    """``memory://`` and ``sqlite://`` mean the same in every installation."""
    installed(memory="statekit_foreign:no_store", sqlite="statekit_foreign:no_store")

    assert isinstance(open_store("memory://x"), MemoryStore)
    assert isinstance(open_store("sqlite:///x.db"), SQLiteStore)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("no_such_module:factory", "cannot be loaded"),
        ("statekit_foreign:no_such_name", "cannot be loaded"),
        ("statekit_foreign:no_store", "made no Store but dict"),
    ],
)
def test_an_installed_store_that_is_none(installed, target: str, why: str) -> None:
    """A distribution that cannot be loaded, or makes something else, is told by name."""
    installed(foreign=target)

    with pytest.raises(InvalidSetting, match=why):
        open_store("foreign://host")


@pytest.mark.parametrize("port", ["abc", "99999999", "-1"])
def test_a_bad_port(installed, port: str) -> None:
    """It is told before the factory sees it."""
    installed(foreign="statekit_foreign:foreign")

    with pytest.raises(InvalidSetting, match="port is no number"):
        open_store(f"foreign://host:{port}/0")


def test_sqlite_is_loaded_only_where_it_is_used() -> None:
    """Neither the package nor a memory store needs ``sqlite3``, which some Pythons lack."""
    script = (
        "import sys; from celery_statekit.stores import open_store; open_store('memory://'); "
        "assert 'sqlite3' not in sys.modules; open_store('sqlite:///x.db'); "
        "assert 'sqlite3' in sys.modules"
    )

    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
