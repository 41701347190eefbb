# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a device as one table: facts about both ends, and the backend's action for each.

The table is pure: it uses no store and no device. It decides every state that netback writes, except the
first, InitWait, which `netback attach` writes. The rows follow io/xenbus.h; docs/decisions.md, Lifecycle,
explains where they go further. docs/states.md is generated from this table, and tests/xenbus/test_states.py
checks every combination of facts.

Rows are in four groups, and their order matters:

1. What ends a device or keeps this process out of it: no directory, another process's rings, nothing to
serve.
2. Steps that need no network: a broken frontend, and the way down through Closing to Closed. A missing
network must not keep a guest from closing.
3. OPEN: the rows below it need an open network.
4. Steps up: offer, connect, adopt, reconfigure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from itertools import product

from netback.abi.xenbus import XenbusState as State


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a decision may depend on."""

    theirs: State
    """The frontend's state; UNKNOWN if its directory or its domain is gone."""
    ours: State
    """The backend's state node; UNKNOWN if our directory is gone."""
    online: bool
    """The toolstack wants the device, and its domain runs."""
    hotplug_done: bool
    """The hotplug script wrote "connected", or the device has no script."""
    open: bool
    """This process has the network open."""
    attached: bool
    """This process has the rings."""
    broken: bool
    """The frontend broke the protocol, or its rings cannot be used; the reason is known."""
    elsewhere: bool
    """Another process has the rings. Reset to false each time this process is to try again."""
    refused: bool
    """The frontend has stayed Connected or Reconfiguring since our state became Closing, or since it was found
    broken.
    """
    moved: bool
    """The frontend wrote its state again, and its keys name other rings than those of this process."""


class Action(Enum):
    """What to do next; the value is its text in docs/states.md."""

    NOTHING = "nothing"
    OPEN = "open the network"
    OFFER = "rings down, write all features and InitWait in one transaction"
    CONNECT = "disconnect, connect, Connected"
    ADOPT = "resume the rings at their indices; no state changes"
    REFUSE_RX = "refuse RX, serve TX until the frontend moves"
    FAIL = "rings down, reason to `error`, Closing"
    CLOSING = "rings down, Closing"
    CLOSED = "rings down, Closed"
    RECONFIGURE = "read the frontend's keys again, Reconfigured"
    RESUME = "read the frontend's keys again, Connected"
    DESTROY = "disconnect, close the network, remove what netback made"
    FORGET = "disconnect, close the network: our own directory is gone"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. An empty set or None matches any value. The first row that matches decides."""

    action: Action
    theirs: frozenset[State] = frozenset()
    ours: frozenset[State] = frozenset()
    online: bool | None = None
    hotplug_done: bool | None = None
    open: bool | None = None
    attached: bool | None = None
    broken: bool | None = None
    elsewhere: bool | None = None
    refused: bool | None = None
    moved: bool | None = None

    def fits(self, facts: Facts) -> bool:
        return (
            (not self.theirs or facts.theirs in self.theirs)
            and (not self.ours or facts.ours in self.ours)
            and all(getattr(self, flag) in (None, getattr(facts, flag)) for flag in FLAGS)
        )


FLAGS = tuple(field.name for field in fields(Facts) if field.type is bool)
"""The names of the boolean facts."""


def _states(*states: State) -> frozenset[State]:
    return frozenset(states)


def _but(*states: State) -> frozenset[State]:
    return frozenset(State) - _states(*states)


_WAITING = _states(State.INITIALISING, State.INIT_WAIT, State.INITIALISED)
_INACTIVE = _WAITING | {State.CLOSED}
"""Frontend states in which the frontend uses nothing of the backend's."""
USING = _states(State.CONNECTED, State.RECONFIGURING)
"""Frontend states in which its keys name rings. Linux's netfront is Reconfiguring as soon as an XDP program is
attached, perhaps before the backend has seen it Connected, and then waits for Reconfigured without a limit.
"""
_LIVE = _states(State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
"""Our states that must pass through Closing before Closed: Windows takes a shorter way for surprise
removal."""

RULES = (
    # this process serves no device here
    Rule(Action.FORGET, ours=_states(State.UNKNOWN)),
    Rule(Action.NOTHING, elsewhere=True),
    Rule(Action.DESTROY, ours=_states(State.CLOSED), online=False),
    # down, whether or not the network is open
    Rule(Action.FAIL, broken=True),
    Rule(Action.CLOSED, theirs=_states(State.UNKNOWN), ours=_but(State.CLOSED, State.INITIALISING)),
    Rule(Action.CLOSED, ours=_WAITING, online=False),
    Rule(Action.CLOSING, theirs=_INACTIVE, ours=_LIVE, online=False),
    Rule(Action.CLOSED, theirs=_INACTIVE, ours=_states(State.CLOSING)),
    Rule(Action.CLOSING, theirs=_states(State.CLOSED), ours=_LIVE),
    Rule(Action.CLOSED, theirs=_states(State.CLOSED), ours=_states(State.INIT_WAIT, State.INITIALISED)),
    Rule(Action.CLOSING, theirs=_states(State.CLOSING), ours=_but(State.CLOSING, State.INITIALISING)),
    Rule(Action.CLOSING, theirs=_states(State.CLOSING), ours=_states(State.CLOSING), attached=True),
    # the frontend is gone: a dead domain's device is seen again when the toolstack, or netback, removes its nodes
    Rule(Action.NOTHING, theirs=_states(State.UNKNOWN), ours=_states(State.CLOSED), open=False),
    # the network: needed while the device is wanted, and for a guest that is still connected
    Rule(Action.OPEN, online=True, open=False),
    Rule(Action.OPEN, ours=_LIVE, open=False),
    # up
    Rule(Action.OFFER, ours=_states(State.INITIALISING), online=True),
    # ours live: the frontend restarted without closing, and would wait for InitWait for ever
    Rule(Action.OFFER, theirs=_states(State.INITIALISING), ours=_states(State.CLOSED) | _LIVE),
    Rule(Action.ADOPT, theirs=_states(State.CONNECTED), ours=_states(State.CONNECTED), attached=False),
    Rule(Action.ADOPT, theirs=_states(State.RECONFIGURING), ours=_states(State.RECONFIGURED), attached=False),
    # a frontend that restarted without closing and waits for nothing: its former rings are nobody's
    Rule(
        Action.CONNECT,
        theirs=USING,
        ours=_states(State.CONNECTED, State.RECONFIGURED),
        online=True,
        hotplug_done=True,
        moved=True,
    ),
    Rule(Action.NOTHING, theirs=_states(State.CONNECTED), ours=_states(State.CONNECTED)),
    Rule(Action.NOTHING, theirs=_states(State.RECONFIGURING), ours=_states(State.RECONFIGURED)),
    Rule(Action.RECONFIGURE, theirs=_states(State.RECONFIGURING), ours=_states(State.CONNECTED)),
    Rule(Action.RESUME, theirs=_states(State.CONNECTED), ours=_states(State.RECONFIGURED)),
    Rule(Action.REFUSE_RX, theirs=USING, ours=_states(State.CLOSING), attached=True),
    Rule(Action.NOTHING, theirs=USING, ours=_states(State.CLOSING), refused=True),
    Rule(Action.CONNECT, theirs=USING, online=True, hotplug_done=True),
    Rule(Action.NOTHING),
)


def decide(facts: Facts) -> Action:
    """The action of the first rule that fits; the last rule fits everything."""
    return next(rule.action for rule in RULES if rule.fits(facts))


def every_facts() -> Iterator[Facts]:
    """All combinations of facts."""
    for theirs, ours, flags in product(State, State, product((False, True), repeat=len(FLAGS))):
        yield Facts(theirs, ours, *flags)


# ---- documentation

_WORDS = {
    "online": ("online=0", "online=1"),
    "hotplug_done": ("hotplug-status missing", "hotplug-status allows"),
    "open": ("network not open", "network open"),
    "attached": ("rings down", "rings up"),
    "broken": ("frontend sound", "frontend broken"),
    "elsewhere": ("rings not in another process", "rings in another process"),
    "refused": ("it entered Connected after Closing", "it stayed Connected or Reconfiguring"),
    "moved": ("its keys name our rings", "its keys name other rings"),
}
"""The texts for each flag, false and true, in docs/states.md."""


def _names(states: frozenset[State]) -> str:
    if len(states) > len(State) // 2:
        return f"all but {_names(frozenset(State) - states)}"
    return ", ".join(state.title for state in sorted(states)) or "any"


def _conditions(rule: Rule) -> str:
    chosen = [(_WORDS[flag], getattr(rule, flag)) for flag in FLAGS]
    return ", ".join(texts[value] for texts, value in chosen if value is not None) or "any"


def render_table() -> str:
    """The rules as a Markdown table, in order."""
    rows = [
        f"| {_names(rule.theirs)} | {_names(rule.ours)} | {_conditions(rule)} | {rule.action.value} |"
        for rule in RULES
    ]
    return "\n".join(["| frontend | our state | where | action |", "|---|---|---|---|", *rows])


_BECOMES = {
    Action.OFFER: State.INIT_WAIT,
    Action.CONNECT: State.CONNECTED,
    Action.CLOSING: State.CLOSING,
    Action.CLOSED: State.CLOSED,
    Action.RECONFIGURE: State.RECONFIGURED,
    Action.RESUME: State.CONNECTED,
}
"""The state after an action that succeeds. FAIL, which leads to Closing from any state, is not drawn."""


def _steps() -> Iterator[tuple[str, str, str]]:
    """Every change of our state that the table makes for a sound frontend, with the frontend's states that
    cause it.
    """
    changes: dict[tuple[State, State], set[State]] = {}
    for facts in every_facts():
        if facts.broken:
            continue
        after = _BECOMES.get(decide(facts), facts.ours)
        if after is not facts.ours:
            changes.setdefault((facts.ours, after), set()).add(facts.theirs)
    for (before, after), theirs in sorted(changes.items()):
        yield before.title, after.title, "any" if len(theirs) == len(State) else _names(frozenset(theirs))


def render_diagram() -> str:
    """Our states as a mermaid diagram; a label names the frontend's states that cause the step."""
    lines = [f"    {before} --> {after}: {theirs}" for before, after, theirs in _steps()]
    return "\n".join(
        ["stateDiagram-v2", "    [*] --> Initialising: toolstack", *lines, "    Closed --> [*]: online=0"]
    )


def render_document() -> str:
    """docs/states.md."""
    return f"""# The lifecycle of a device

Made from the table in `src/netback/xenbus/states.py`: `python -m netback.xenbus.states > docs/states.md`.

"Our state" is the backend's. The first row that fits decides. After every action both ends are read again, so
several rows may follow each other: a frontend that goes to Closed while we are Connected sees Closing, then Closed.

A frontend is broken when it broke the protocol on the rings, or when they could not be mapped or bound. The diagram
leaves out that this leads to Closing from every state.

{render_table()}

```mermaid
{render_diagram()}
```
"""


if __name__ == "__main__":
    print(render_document(), end="")
