"""Pictures of a table of transitions: Mermaid's ``stateDiagram-v2``, and a Markdown table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol


class _Drawn(Protocol):
    """What is drawn: a :class:`~celery_statekit.states.Flow`."""

    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def initial(self) -> str: ...
    @property
    def finals(self) -> frozenset[str]: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def table(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def guards(self) -> Mapping[tuple[str, str], Any]: ...
    @property
    def running(self) -> tuple[str, ...]: ...


def mermaid(flow: _Drawn) -> str:
    """``flow`` as the text of a Mermaid state diagram."""
    lines = _task_lines(flow) if flow.running else _plain_lines(flow)
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in lines)])


def markdown(flow: _Drawn) -> str:
    """``flow`` as a Markdown table: state, label, and what may be entered from it."""
    rows = ["| State | Label | May go to |", "| --- | --- | --- |"]
    for state, label in flow.labels.items():
        nexts = ", ".join(_escaped(to, "&#") for to in flow.table[state])
        rows.append(f"| {_escaped(state, '&#')} | {_escaped(label, '&#')} | {nexts or '—'} |")
    return "\n".join(rows)


_SKIPPING: Final = "forward, and states may be skipped"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
#: All but letters, digits and blanks; those of ``-./_'`` that stand at the edge of a word, where
#: Markdown, which Mermaid reads in labels, gives them a meaning; and the blank of "direction TB",
#: which Mermaid 11 obeys wherever it stands.
_MARKUP: Final = re.compile(
    r"[^\w \-./']|(?<![^\W_])[\-./_']|[\-./_'](?![^\W_])|(?<=direction) ", re.IGNORECASE
)


def _escaped(text: str, mark: str) -> str:
    """``text`` in one line, markup as character references: ``#47;`` (Mermaid), ``&#47;``."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    return _MARKUP.sub(lambda found: f"{mark}{ord(found[0])};", line)


def _id(flow: _Drawn, state: str) -> str:
    # The prefix keeps off Mermaid's own words (note, class, style), more with each of its releases.
    plain = re.fullmatch(r"[A-Za-z0-9_]+", state)
    return f"s_{state}" if plain else f"s{flow.states.index(state) + 1}"


def _box(flow: _Drawn, state: str) -> str:
    name, label = _escaped(state, "#"), _escaped(flow.labels[state], "#")
    text = name if name == label else f"{name}: {label}"
    return f'state "{text}" as {_id(flow, state)}'


def _arrow(flow: _Drawn, state: str, to: str) -> str:
    arrow = f"{_id(flow, state)} --> {_id(flow, to)}"
    if (state, to) not in flow.guards:
        return arrow
    name = getattr(flow.guards[state, to], "__name__", "")
    return f"{arrow} : if {_escaped(name, '#')}" if name.isidentifier() else f"{arrow} : guarded"


def _single_steps(table: Mapping[str, tuple[str, ...]]) -> set[tuple[str, str]]:
    """The moves of ``table`` without those that skip a state, if every such move is allowed."""
    moves = {(state, to) for state, nexts in table.items() for to in nexts}
    through = {(state, end) for state, to in moves for end in table[to]}
    forward = through <= moves and all(state != to for state, to in moves)
    return moves - through if forward else moves


def _inner_lines(flow: _Drawn) -> tuple[list[str], bool]:
    """What one run, or a client, goes through; and whether moves are left out that skip states."""
    inside = flow.running or flow.states
    entered = set(flow.running[1:] or flow.states)
    table = {state: tuple(to for to in flow.table[state] if to in entered) for state in inside}
    single = _single_steps(table)
    moves = [(state, to) for state, nexts in table.items() for to in nexts]
    drawn = [move for move in moves if move in single or move in flow.guards]
    lines = [_box(flow, state) for state in inside]
    lines.append(f"[*] --> {_id(flow, inside[0])}")
    lines += [_arrow(flow, *move) for move in drawn]
    return lines, drawn != moves


def _plain_lines(flow: _Drawn) -> list[str]:
    lines, skipping = _inner_lines(flow)
    if skipping:
        lines.append(f"note right of {_id(flow, flow.initial)} : {_SKIPPING}")
    return lines + [f"{_id(flow, end)} --> [*]" for end in flow.states if end in flow.finals]


def _task_lines(flow: _Drawn) -> list[str]:
    inner, skipping = _inner_lines(flow)
    title = f"an attempt{f': {_SKIPPING}' if skipping else ''}; a new one begins again"
    boxes: dict[object, list[str]] = {}
    for state in flow.states:
        before = tuple(other for other in flow.states if state in flow.table[other])
        alike = None if state in flow.running else (before, flow.table[state])
        boxes.setdefault(alike, []).append(state)
    lines: list[str] = []
    ids: dict[str, str] = {}
    for first, *others in boxes.values():
        if first in flow.running:
            ids[first] = "attempt"
            lines += [f'state "{title}" as attempt {{', *(f"    {line}" for line in inner), "}"]
        elif others:
            ids[first] = "_".join([first, *others])
            lines.append(f'state "{", ".join([first, *others])}" as {ids[first]}')
        else:
            ids[first] = _id(flow, first)
            lines.append(_box(flow, first))
    lines.append(f"[*] --> {ids[flow.initial]}")
    for state, id_ in ids.items():
        nexts = [ids[to] for to in ids if to in flow.table[state] and to != state]
        lines += [f"{id_} --> {to}" for to in nexts or ["[*]"]]
    return lines
