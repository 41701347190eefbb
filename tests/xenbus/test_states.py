# SPDX-License-Identifier: Apache-2.0
"""The lifecycle table, exhaustively: beside the rules written once more, and what must hold of any table."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.xenbus.states import RULES, Action, Facts, decide, every_facts, render_document

LIVE = (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
BEFORE = (State.INITIALISING, State.INIT_WAIT, State.INITIALISED)
ACTIVE = (State.CONNECTED, State.CLOSING, State.RECONFIGURING, State.RECONFIGURED)

AFTER = {
    Action.OFFER: {"ours": State.INIT_WAIT, "attached": False},
    Action.CONNECT: {"ours": State.CONNECTED, "attached": True},
    Action.ADOPT: {"attached": True},
    Action.CLOSING: {"ours": State.CLOSING, "attached": False},
    Action.CLOSED: {"ours": State.CLOSED, "attached": False},
    Action.RECONFIGURE: {"ours": State.RECONFIGURED, "attached": True},
}
"""What an action makes of the facts where it succeeds."""

ENDS = (Action.NOTHING, Action.REFUSE_RX, Action.DESTROY, Action.FORGET)


def expected(facts: Facts) -> Action:
    """The rows, as one function: from our state outward, where the table goes from the frontend's."""
    theirs, ours, online = facts.theirs, facts.ours, facts.online
    if ours is State.UNKNOWN:
        return Action.FORGET
    if ours is State.CLOSED and not online:
        return Action.DESTROY
    if ours is State.INITIALISING and online:
        return Action.OFFER
    if theirs is State.UNKNOWN:
        return Action.NOTHING if ours is State.CLOSED else Action.CLOSED
    if theirs is State.CLOSED and online:
        if ours is State.CLOSED:
            return Action.NOTHING
        return Action.CLOSING if ours in LIVE else Action.CLOSED
    if theirs not in ACTIVE:
        return expected_of_inactive(theirs, ours, online)
    return expected_of_active(facts)


def expected_of_inactive(theirs: State, ours: State, online: bool) -> Action:
    if ours is State.CLOSING:
        return Action.CLOSED
    if not online:
        return Action.CLOSING if ours in LIVE else Action.CLOSED
    return Action.OFFER if theirs is State.INITIALISING and ours in (*LIVE, State.CLOSED) else Action.NOTHING


def expected_of_active(facts: Facts) -> Action:
    theirs, ours, online = facts.theirs, facts.ours, facts.online
    if not online and ours in BEFORE:
        return Action.CLOSED
    if theirs is State.CLOSING:
        return Action.NOTHING if ours is State.CLOSING and not facts.attached else Action.CLOSING
    if theirs is State.RECONFIGURING and ours is State.CONNECTED:
        return Action.RECONFIGURE
    if theirs is State.RECONFIGURING and ours is State.RECONFIGURED and not facts.attached:
        return Action.ADOPT
    if theirs is not State.CONNECTED:
        return Action.NOTHING
    if ours is State.CONNECTED:
        return Action.NOTHING if facts.attached else Action.ADOPT
    if ours is State.CLOSING and facts.attached:
        return Action.REFUSE_RX
    asked_to_close = ours is State.CLOSING and facts.refused
    return Action.CONNECT if online and facts.hotplug_done and not asked_to_close else Action.NOTHING


def test_every_combination() -> None:
    combinations = list(every_facts())
    assert len(combinations) == len(set(combinations)) == 9 * 9 * 2**4
    assert {facts: decide(facts) for facts in combinations} == {
        facts: expected(facts) for facts in combinations
    }


def test_every_rule_decides_something() -> None:
    deciding = {next(rule for rule in RULES if rule.fits(facts)) for facts in every_facts()}
    assert deciding == set(RULES)


@pytest.mark.parametrize("facts", [facts for facts in every_facts() if facts.ours in LIVE], ids=str)
def test_closing_is_never_skipped(facts: Facts) -> None:
    """But for a frontend that is gone, or that began anew: nobody is there to see it."""
    if facts.theirs is State.INITIALISING and facts.online:
        assert decide(facts) is Action.OFFER
    elif facts.theirs is not State.UNKNOWN:
        assert decide(facts) not in (Action.CLOSED, Action.DESTROY, Action.OFFER)


def test_online_devices_are_never_destroyed() -> None:
    assert not [facts for facts in every_facts() if decide(facts) is Action.DESTROY and facts.online]


def test_only_what_is_hotplug_done_and_online_connects() -> None:
    connecting = [facts for facts in every_facts() if decide(facts) is Action.CONNECT]
    assert all(
        facts.hotplug_done and facts.online and facts.theirs is State.CONNECTED for facts in connecting
    )


def test_it_settles() -> None:
    """Whatever the facts, a few actions later there is nothing to do: no two rows chase each other."""
    for start in every_facts():
        facts, walk = start, [decide(start)]
        while walk[-1] not in ENDS:
            facts = replace(facts, **AFTER[walk[-1]])  # type: ignore[arg-type]
            walk.append(decide(facts))
            assert len(walk) <= 5, (start, walk)


def test_offline_frontends_that_leave_end_in_destruction() -> None:
    for ours, theirs, attached in product(
        set(State) - {State.UNKNOWN}, (State.CLOSED, State.UNKNOWN), (False, True)
    ):
        facts = Facts(theirs, ours, online=False, hotplug_done=True, attached=attached, refused=False)
        while (action := decide(facts)) not in ENDS:
            facts = replace(facts, **AFTER[action])  # type: ignore[arg-type]
        assert action is Action.DESTROY


def test_the_document_is_current() -> None:
    document = Path(__file__).parents[2] / "docs" / "states.md"
    assert document.read_text() == render_document(), "make it again: see its first lines"
