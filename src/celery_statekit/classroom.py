"""The classroom layout: what many a hand-made client state looks like, read as one of ours."""

from __future__ import annotations

from typing import Any

from celery_statekit.declared import ACTING, Declared
from celery_statekit.errors import InvalidClientState
from celery_statekit.plain import shown
from celery_statekit.states import Flow


def from_classroom(cls: type[Declared], data: dict[str, Any]) -> dict[str, Any]:
    """The document that says what a hand-made one says.

    ``{client_id, available_states, curr_state, action_taken, action_result}``: the actions taken
    (one name, or a list) become ``actions``. ``data`` is used up.

    Raises:
        InvalidClientState: its states are others, or its results are not those of its actions.
    """
    states = Flow.of(cls.states).states
    available = data.pop("available_states", None)
    if available is not None and (
        not isinstance(available, list) or any(state not in states for state in available)
    ):
        path = "$.available_states"
        raise InvalidClientState(f"{cls.kind}: other states", path, available, ", ".join(states))
    state = data["state"] = data.pop("curr_state")
    taken, result = data.pop("action_taken", None), data.pop("action_result", None)
    names = taken if isinstance(taken, list) else [] if taken is None else [taken]
    if any(not isinstance(name, str) for name in names):
        rule = "a name or a list of names"
        raise InvalidClientState(f"{cls.kind}: no actions", "$.action_taken", shown(taken), rule)
    results = _classroom_results(taken, names, result)
    if results is None:
        path, rule = "$.action_result", "one value, or one for each action taken"
        raise InvalidClientState(f"{cls.kind}: other results", path, shown(result), rule)
    if names and not set(ACTING) <= set(states):
        path, rule = "$.action_taken", "none: it lacks the states for actions"
        raise InvalidClientState(f"{cls.kind}: actions taken", path, shown(taken), rule)
    if names:
        ends = ["SUCCESS"] * (len(names) - 1) + [state if state in ACTING[1:] else "SUCCESS"]
        data["actions"] = [
            {"name": name, "state": end, "result": value}
            for name, end, value in zip(names, ends, results, strict=True)
        ]
    return data


def _classroom_results(taken: object, names: list[str], result: Any) -> list[Any] | None:
    """The result of each action: by name, one each, or one value: the last one's. None: neither."""
    if isinstance(result, dict) and result.keys() <= set(names):
        return [result.get(name) for name in names]
    if isinstance(result, list) and not isinstance(taken, str):
        missing = len(names) - len(result)
        return None if missing < 0 else [*result, *([None] * missing)]
    if not names:
        return [] if result in (None, "") else None
    return [None] * (len(names) - 1) + [result]
