# SPDX-License-Identifier: Apache-2.0
"""The lifecycle of a device as one table: what is known of both ends, and what the backend does about it.

Pure: it knows no store and no device, and it is the only place that decides a state. docs/states.md is made from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product

from netback.abi.xenbus import XenbusState as State


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a decision may depend on."""

    theirs: State
    """The frontend's state; UNKNOWN where its directory, or its domain, is gone."""
    ours: State
    online: bool
    """The toolstack wants the device, and its domain lives."""
    hotplug_done: bool
    """The hotplug script said "connected", or there is none."""
    attached: bool
    """This process has the rings."""
    refused: bool
    """The frontend has not left Connected since we said Closing to it."""


class Action(Enum):
    """What to do next; the value is how the documentation says it."""

    NOTHING = "nothing"
    OFFER = "rings down, open the network, write all features and InitWait in one transaction"
    CONNECT = "disconnect, connect, Connected; failure: reason to `error`, Closing"
    ADOPT = "take up the rings where they stand; no state changes"
    REFUSE_RX = "refuse RX, serve TX until the frontend moves"
    CLOSING = "rings down, Closing"
    CLOSED = "rings down, Closed"
    RECONFIGURE = "read the frontend's keys again, Reconfigured"
    DESTROY = "disconnect, close the network, remove what we made"
    FORGET = "disconnect, close the network: our own directory is gone"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: an empty set or None stands for anything. The first row that fits decides."""

    action: Action
    theirs: frozenset[State] = frozenset()
    ours: frozenset[State] = frozenset()
    online: bool | None = None
    hotplug_done: bool | None = None
    attached: bool | None = None
    refused: bool | None = None

    def fits(self, facts: Facts) -> bool:
        return (
            (not self.theirs or facts.theirs in self.theirs)
            and (not self.ours or facts.ours in self.ours)
            and self.online in (None, facts.online)
            and self.hotplug_done in (None, facts.hotplug_done)
            and self.attached in (None, facts.attached)
            and self.refused in (None, facts.refused)
        )


def _states(*states: State) -> frozenset[State]:
    return frozenset(states)


_WAITING = _states(State.INITIALISING, State.INIT_WAIT, State.INITIALISED)
_INACTIVE = _WAITING | {State.CLOSED}
"""Frontends that hold nothing of ours."""
_LIVE = _states(State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
"""Our states that a frontend must see end in Closing before Closed: Windows reads less as surprise removal."""

RULES = (
    Rule(Action.FORGET, ours=_states(State.UNKNOWN)),
    Rule(Action.OFFER, ours=_states(State.INITIALISING), online=True),
    Rule(Action.DESTROY, ours=_states(State.CLOSED), online=False),
    Rule(Action.NOTHING, theirs=_states(State.UNKNOWN), ours=_states(State.CLOSED)),
    Rule(Action.CLOSED, theirs=_states(State.UNKNOWN)),
    Rule(Action.CLOSED, ours=_WAITING, online=False),
    Rule(Action.CLOSING, theirs=_INACTIVE, ours=_LIVE, online=False),
    Rule(Action.CLOSED, theirs=_INACTIVE, ours=_states(State.CLOSING)),
    # ours live: it began anew without a word, and would wait for InitWait for ever
    Rule(Action.OFFER, theirs=_states(State.INITIALISING), ours=_states(State.CLOSED) | _LIVE),
    Rule(Action.NOTHING, theirs=_WAITING),
    Rule(Action.NOTHING, theirs=_states(State.CLOSED), ours=_states(State.CLOSED)),
    Rule(Action.CLOSING, theirs=_states(State.CLOSED), ours=_LIVE),
    Rule(Action.CLOSED, theirs=_states(State.CLOSED)),
    Rule(Action.NOTHING, theirs=_states(State.CLOSING), ours=_states(State.CLOSING), attached=False),
    Rule(Action.CLOSING, theirs=_states(State.CLOSING)),
    Rule(Action.ADOPT, theirs=_states(State.CONNECTED), ours=_states(State.CONNECTED), attached=False),
    Rule(Action.ADOPT, theirs=_states(State.RECONFIGURING), ours=_states(State.RECONFIGURED), attached=False),
    Rule(Action.NOTHING, theirs=_states(State.CONNECTED), ours=_states(State.CONNECTED)),
    Rule(Action.REFUSE_RX, theirs=_states(State.CONNECTED), ours=_states(State.CLOSING), attached=True),
    Rule(Action.NOTHING, theirs=_states(State.CONNECTED), ours=_states(State.CLOSING), refused=True),
    Rule(Action.CONNECT, theirs=_states(State.CONNECTED), online=True, hotplug_done=True),
    Rule(Action.RECONFIGURE, theirs=_states(State.RECONFIGURING), ours=_states(State.CONNECTED)),
    Rule(Action.NOTHING),
)


def decide(facts: Facts) -> Action:
    """The action of the first rule that fits; the last fits everything."""
    return next(rule.action for rule in RULES if rule.fits(facts))


def every_facts() -> Iterator[Facts]:
    """All combinations."""
    both = (False, True)
    for theirs, ours, online, hotplug_done, attached, refused in product(
        State, State, both, both, both, both
    ):
        yield Facts(theirs, ours, online, hotplug_done, attached, refused)


# ---- as documentation


def _names(states: frozenset[State]) -> str:
    return ", ".join(state.title for state in sorted(states)) or "any"


def _conditions(rule: Rule) -> str:
    words = {
        "online": ("online=0", "online=1"),
        "hotplug_done": ("hotplug-status missing", "hotplug-status allows"),
        "attached": ("rings down", "rings up"),
        "refused": ("it came to Connected anew", "it never left Connected"),
    }
    chosen = [(texts, getattr(rule, name)) for name, texts in words.items()]
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
}
"""The state that an action leaves where it succeeds."""


def _steps() -> Iterator[tuple[str, str, str]]:
    """Every change of our state that the table can make, and the frontend's states that it answers."""
    changes: dict[tuple[State, State], set[State]] = {}
    for facts in every_facts():
        after = _BECOMES.get(decide(facts), facts.ours)
        if after is not facts.ours:
            changes.setdefault((facts.ours, after), set()).add(facts.theirs)
    for (before, after), theirs in sorted(changes.items()):
        yield before.title, after.title, "any" if len(theirs) == len(State) else _names(frozenset(theirs))


def render_diagram() -> str:
    """Our states as a mermaid diagram; a label names the frontend's states that the step answers."""
    lines = [f"    {before} --> {after}: {theirs}" for before, after, theirs in _steps()]
    return "\n".join(
        ["stateDiagram-v2", "    [*] --> Initialising: toolstack", *lines, "    Closed --> [*]: online=0"]
    )


def render_document() -> str:
    """docs/states.md."""
    return f"""# The lifecycle of a device

Made from the table in `src/netback/xenbus/states.py`: `python -m netback.xenbus.states > docs/states.md`.

The first row that fits decides. After every action both ends are read again, so that several rows may follow each
other: a frontend that goes to Closed while we are Connected sees Closing, then Closed.

{render_table()}

```mermaid
{render_diagram()}
```
"""


if __name__ == "__main__":
    print(render_document(), end="")
