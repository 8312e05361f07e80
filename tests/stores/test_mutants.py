"""The contract catches what it is there for: each seeded fault fails the test that names it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.stores import posting

HERE = Path(__file__).parent


def _load():
    spec = importlib.util.spec_from_file_location("statekit_store_mutants", HERE / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mutants = _load()
UNBROKEN = (mutants.Unbroken, mutants.UnbrokenMemory, posting.UnbrokenPosting)
MUTANTS = [
    mutant
    for mutant in (*vars(mutants).values(), *vars(posting).values())
    if isinstance(mutant, type) and issubclass(mutant, UNBROKEN) and mutant not in UNBROKEN
]
#: What every mutant must still be able to do.
SANE = "test_a_first_write_is_read_as_written"


class Run:
    """A pytest plugin: collects ``tests`` of one class and keeps what becomes of them."""

    def __init__(self, store_class: type, tests: set[str]):
        self.store_class = type("TestStore", (store_class,), {"__test__": True})
        self.tests = tests
        self.passed = set()
        self.failed = set()

    def pytest_pycollect_makemodule(self, module_path, parent):
        module = pytest.Module.from_parent(parent, path=module_path)
        module.obj = SimpleNamespace(TestStore=self.store_class, __doc__="")
        return module

    def pytest_pycollect_makeitem(self, collector, name, obj):
        unwanted = name.startswith("test_") and name not in self.tests
        return [] if unwanted else None

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        if report.failed:
            self.failed.add(name)
        elif report.when == "call" and report.passed:
            self.passed.add(name)


def run(store_class: type, tests: set[str]) -> Run:
    """What becomes of ``tests`` of the contract on one store, in a pytest of their own."""
    plugin = Run(store_class, tests)
    # The first three would look for what the tests around this one left behind.
    without = ("unraisableexception", "threadexception", "faulthandler", "cacheprovider")
    arguments = [str(HERE / "mutants.py"), f"--rootdir={HERE}", "-c", "/dev/null", "-q"]
    arguments += ["--import-mode=importlib", *(f"-pno:{name}" for name in without)]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytest.main(arguments, plugins=[plugin])
    assert plugin.passed | plugin.failed == tests, told.getvalue()
    return plugin


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_contract_catches_the_fault(mutant: type) -> None:
    """The test that the mutant names fails on it, and a test of what it still can does not."""
    ran = run(mutant, {mutant.caught_by, SANE})

    assert ran.failed == {mutant.caught_by}


@pytest.mark.parametrize("store", UNBROKEN, ids=lambda store: store.__name__)
def test_without_a_fault_the_same_tests_pass(store: type) -> None:
    """Run in the same way, no test that catches a mutant fails on the store it was made from."""
    tests = {mutant.caught_by for mutant in MUTANTS if issubclass(mutant, store)} | {SANE}

    assert run(store, tests).failed == set()


def test_there_are_enough_faults() -> None:
    """Each test that catches one is a test of the contract, and the mutants are many."""
    assert len(MUTANTS) >= 100
    for mutant in MUTANTS:
        assert any(
            hasattr(store, mutant.caught_by) for store in UNBROKEN if issubclass(mutant, store)
        )
