"""A client's state, sent along by value, and kept on the server."""

from __future__ import annotations

from pprint import pprint

from celery import chain

from celery_statekit import Clients, ClientState
from examples.classroom.app import (
    app,
    first_action,
    second_action,
    take_action,
    third_action,
    to_classroom,
)
from examples.workers import Workers, arguments, running

#: Actions that all workers take for one client at once.
ACTIONS = 120


def by_value() -> None:
    """Send the state along; each task gives back what it has become."""
    sent = to_classroom(ClientState("pupil-1"))
    result = chain(first_action.s(sent), second_action.s()).delay()
    print("By value, as the classroom's dictionary. Sent:")
    pprint(sent, sort_dicts=False)
    print("Came back:")
    pprint(result.get(timeout=30), sort_dicts=False)

    state = third_action.delay(ClientState("pupil-2")).get(timeout=30)
    print("\nBy value, as a ClientState. Came back:")
    pprint([state, *state.actions])


def on_the_server(workers: Workers) -> None:
    """Let every worker change one stored client at once."""
    clients = Clients(app, ClientState)
    clients.create("pupil-3")
    results = [take_action.delay("pupil-3", f"action-{n}") for n in range(ACTIONS)]
    for result in results:
        result.get(timeout=30)

    actions = clients.get("pupil-3").actions
    saw_all = [action.result for action in actions] == [*range(1, ACTIONS + 1)]
    print(f"\nOn the server. {ACTIONS} actions were sent, only the client's id with them.")
    print(f"{len(actions)} were taken, each saw all before it: {saw_all}")
    changes = clients.history("pupil-3", limit=3 * ACTIONS)
    took = [change.worker for change in changes if change.to_state == "SUCCESS"]
    for worker in workers:
        print(f"  by {worker.name}: {sum(name.startswith(worker.name) for name in took)}")


def main() -> None:
    """Tell the story."""
    with running(app, arguments(__doc__), workers=3) as workers:
        by_value()
        on_the_server(workers)
    print("\nIts machine, as a Mermaid diagram:")
    print(ClientState.flow().mermaid())


if __name__ == "__main__":
    main()
