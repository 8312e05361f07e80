"""The contract of a store as tests: whoever writes a store inherits them.

.. code-block:: python

    import pytest

    from celery_statekit.stores import MemoryStore
    from celery_statekit.testing import StoreContract

    class TestMyStore(StoreContract):
        shared_between_processes = False

        @pytest.fixture
        def reopen(self):
            return lambda limits=None: MemoryStore("mine", limits)

        @pytest.fixture
        def plant(self):
            return lambda key, text: ...  # put these bytes where the store keeps its own

``StoreContract`` is for every store; ``LeasesContract``, ``RenewsContract``,
``EnumeratesContract``, ``NotifiesContract`` and ``PostsContract`` are for one that also is
:class:`~celery_statekit.stores.base.Leases`, :class:`~celery_statekit.stores.base.Renews`,
:class:`~celery_statekit.stores.base.Enumerates`, :class:`~celery_statekit.stores.base.Notifies`
or :class:`~celery_statekit.stores.base.Posts`:
``class TestMyStore(StoreContract, LeasesContract, NotifiesContract)``.
Where a store takes a clock, hand a :class:`ManualClock` to it and override ``elapse`` with the
clock's ``advance``: expiry is then tested without waiting. Tests of processes fork.
"""

from __future__ import annotations

from celery_statekit.testing.contract.damage import DamageContract
from celery_statekit.testing.contract.enumeration import EnumeratesContract
from celery_statekit.testing.contract.expiry import ExpiryContract
from celery_statekit.testing.contract.forks import ForksContract
from celery_statekit.testing.contract.history import HistoryContract
from celery_statekit.testing.contract.leases import LeasesContract
from celery_statekit.testing.contract.notices import NotifiesContract
from celery_statekit.testing.contract.place import ManualClock, Reopen, StoreFixtures
from celery_statekit.testing.contract.posts import PostsContract
from celery_statekit.testing.contract.races import RacesContract
from celery_statekit.testing.contract.records import RecordsContract
from celery_statekit.testing.contract.renewals import RenewsContract
from celery_statekit.testing.contract.values import ValuesContract

__all__ = [
    "EnumeratesContract",
    "LeasesContract",
    "ManualClock",
    "NotifiesContract",
    "PostsContract",
    "RenewsContract",
    "Reopen",
    "StoreContract",
    "StoreFixtures",
]


class StoreContract(
    RecordsContract,
    HistoryContract,
    ValuesContract,
    ExpiryContract,
    DamageContract,
    RacesContract,
    ForksContract,
):
    """What every store must do."""
