"""Waiting for news of a record: told by the store where it can tell, by looking elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from celery_statekit.errors import StatekitError
from celery_statekit.stores.base import Notifies, Store

logger = logging.getLogger(__name__)

#: Seconds after which it is looked again, though the store would have told: a hint may be lost.
TOLD: Final = 1.0
#: The same where the store tells nothing.
UNTOLD: Final = 0.25


@contextmanager
def news_of(store: Store, key: str, woken: threading.Event) -> Iterator[Callable[[], None]]:
    """Within the block, what waits until there may be news of the record ``key``.

    Args:
        woken: what others set who have news themselves.
    """
    end = None
    try:
        if isinstance(store, Notifies):
            try:
                end = store.subscribe(key, woken.set)
            except StatekitError:
                logger.debug("%s is looked at, for the store cannot tell", key, exc_info=True)
        seconds = UNTOLD if end is None else TOLD

        def wait() -> None:
            woken.wait(seconds)
            woken.clear()

        yield wait
    finally:
        if end is not None:
            end()
