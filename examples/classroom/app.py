"""The classroom's app: each task takes one action for one client."""

from __future__ import annotations

from typing import Any

from celery import Celery

from celery_statekit import ClientState, StatefulTask

app = Celery("classroom")


def to_classroom(state: ClientState) -> dict[str, Any]:
    """The dictionary in which the classroom keeps a state; ``ClientState.from_dict`` reads it."""
    return {
        "client_id": state.client_id,
        "available_states": list(state.available_states),
        "curr_state": state.state,
        "action_taken": [action.name for action in state.actions],
        "action_result": [action.result for action in state.actions],
    }


# --- by value: the state comes as a dictionary and goes as one ------------------------------------


@app.task(bind=True, base=StatefulTask)
def first_action(self: StatefulTask, state: ClientState) -> dict[str, Any]:
    """Greet. ``state`` was the classroom's dictionary; the annotation makes it a ClientState."""
    with state.action("first_action") as action:
        action.result = f"hello, {state.client_id}"
    return to_classroom(state)


@app.task(bind=True, base=StatefulTask)
def second_action(self: StatefulTask, state: ClientState) -> dict[str, Any]:
    """Look at what the first action left."""
    with state.action("second_action") as action:
        action.result = len(state.actions[0].result)
    return to_classroom(state)


@app.task(bind=True, base=StatefulTask)
def third_action(self: StatefulTask, state: ClientState) -> ClientState:
    """Fail. The client goes back as one, with the error of its action; then it is READY again."""
    try:
        with state.action("third_action"):
            raise ValueError("the chalk is broken")
    except ValueError:
        return state


# --- on the server: only the client's id travels --------------------------------------------------


@app.task(bind=True, base=StatefulTask)
def take_action(self: StatefulTask, client_id: str, name: str) -> None:
    """Take an action whose result is how many were taken by then, this one included."""

    def act(state: ClientState) -> None:
        with state.action(name) as action:
            action.result = len(state.actions)

    # `once`: if this task is delivered or retried again, the action is not taken again.
    self.clients(ClientState).update(client_id, act, once=name)
