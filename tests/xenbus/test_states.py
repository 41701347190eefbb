# SPDX-License-Identifier: Apache-2.0
"""The lifecycle table, exhaustively: against a second statement of the rules, and for general properties."""

from dataclasses import replace
from itertools import product
from pathlib import Path

from netback.abi.xenbus import XenbusState as State
from netback.xenbus.states import RULES, Action, Facts, decide, every_facts, render_document

LIVE = (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)
BEFORE = (State.INITIALISING, State.INIT_WAIT, State.INITIALISED)
USING = (State.CONNECTED, State.RECONFIGURING)
ACTIVE = (State.CONNECTED, State.CLOSING, State.RECONFIGURING, State.RECONFIGURED)

AFTER = {
    Action.OPEN: {"open": True},
    Action.OFFER: {"ours": State.INIT_WAIT, "attached": False},
    Action.CONNECT: {"ours": State.CONNECTED, "attached": True, "moved": False},
    Action.ADOPT: {"attached": True},
    Action.FAIL: {"ours": State.CLOSING, "attached": False, "broken": False, "refused": True},
    Action.CLOSING: {"ours": State.CLOSING, "attached": False},
    Action.CLOSED: {"ours": State.CLOSED, "attached": False},
    Action.RECONFIGURE: {"ours": State.RECONFIGURED, "attached": True},
    Action.RESUME: {"ours": State.CONNECTED, "attached": True},
}
"""The facts after an action that succeeds."""

ENDS = (Action.NOTHING, Action.REFUSE_RX, Action.DESTROY, Action.FORGET)


def expected(facts: Facts) -> Action:
    """The rules as functions, ordered by our state; the table is ordered by the frontend's."""
    if facts.ours is State.UNKNOWN:
        return Action.FORGET
    if facts.elsewhere:
        return Action.NOTHING
    if facts.ours is State.CLOSED and not facts.online:
        return Action.DESTROY
    if facts.broken:
        return Action.FAIL
    if down := expected_down(facts):
        return down
    if facts.theirs is State.UNKNOWN and facts.ours is State.CLOSED:
        return Action.NOTHING
    if not facts.open and (facts.online or facts.ours in LIVE):
        return Action.OPEN
    return expected_up(facts)


def expected_down(facts: Facts) -> Action | None:
    """The way to Closed needs no network."""
    theirs, ours = facts.theirs, facts.ours
    if ours is State.INITIALISING:
        return None if facts.online else Action.CLOSED
    if theirs is State.UNKNOWN:
        return Action.CLOSED if ours is not State.CLOSED else None
    if theirs is State.CLOSING and facts.online:
        return Action.CLOSING if ours is not State.CLOSING or facts.attached else None
    if ours in BEFORE:
        return Action.CLOSED if not facts.online or theirs is State.CLOSED else None
    if theirs is State.CLOSING:
        return Action.CLOSING if ours is not State.CLOSING or facts.attached else None
    if theirs in ACTIVE:
        return None
    if ours is State.CLOSING:
        return Action.CLOSED
    return Action.CLOSING if ours in LIVE and (theirs is State.CLOSED or not facts.online) else None


def expected_up(facts: Facts) -> Action:
    theirs, ours = facts.theirs, facts.ours
    if ours is State.INITIALISING:
        return Action.OFFER
    if theirs is State.INITIALISING:
        return Action.OFFER if ours in (*LIVE, State.CLOSED) else Action.NOTHING
    if theirs not in USING:
        return Action.NOTHING
    connects = facts.online and facts.hotplug_done
    answer = {State.CONNECTED: State.CONNECTED, State.RECONFIGURING: State.RECONFIGURED}[theirs]
    if ours is answer and not facts.attached:
        return Action.ADOPT
    if ours in (State.CONNECTED, State.RECONFIGURED):
        if connects and facts.moved:
            return Action.CONNECT
        if ours is answer:
            return Action.NOTHING
        return Action.RESUME if theirs is State.CONNECTED else Action.RECONFIGURE
    if ours is State.CLOSING and facts.attached:
        return Action.REFUSE_RX
    asked_to_close = ours is State.CLOSING and facts.refused
    return Action.CONNECT if connects and not asked_to_close else Action.NOTHING


def test_every_combination() -> None:
    combinations = list(every_facts())
    assert len(combinations) == len(set(combinations)) == 9 * 9 * 2**8
    assert {facts: decide(facts) for facts in combinations} == {
        facts: expected(facts) for facts in combinations
    }


def test_every_rule_decides_something() -> None:
    deciding = {next(rule for rule in RULES if rule.fits(facts)) for facts in every_facts()}
    assert deciding == set(RULES)


def test_closing_is_never_skipped() -> None:
    """Except for a frontend that is gone or started again: it cannot see Closing, or does not look."""
    for facts in every_facts():
        if facts.ours in LIVE and facts.theirs is not State.UNKNOWN:
            skips = (Action.CLOSED, Action.DESTROY, Action.OFFER)
            began_again = facts.theirs is State.INITIALISING and facts.online
            assert decide(facts) not in (skips[:2] if began_again else skips), facts


def test_a_missing_network_keeps_no_guest_from_closing() -> None:
    """The way down is decided before the network is opened, since opening may fail for ever."""
    down = (Action.CLOSING, Action.CLOSED, Action.FAIL, Action.DESTROY, Action.FORGET)
    for facts in every_facts():
        if decide(replace(facts, open=True)) in down:
            assert decide(facts) in down, facts


def test_nothing_is_done_without_a_network() -> None:
    needs = (Action.OFFER, Action.CONNECT, Action.ADOPT, Action.RECONFIGURE, Action.RESUME)
    assert all(facts.open for facts in every_facts() if decide(facts) in needs)


def test_a_device_of_another_process_is_left_alone() -> None:
    theirs = [facts for facts in every_facts() if facts.elsewhere]
    assert {decide(facts) for facts in theirs} == {Action.NOTHING, Action.FORGET}


def test_online_devices_are_never_destroyed() -> None:
    assert not [facts for facts in every_facts() if decide(facts) is Action.DESTROY and facts.online]


def test_only_what_is_hotplug_done_and_online_connects() -> None:
    connecting = [facts for facts in every_facts() if decide(facts) is Action.CONNECT]
    assert all(facts.hotplug_done and facts.online and facts.theirs in USING for facts in connecting)


def test_a_frontend_with_rings_is_served_or_closed() -> None:
    """From any facts of a device that is wanted, a frontend that stays Connected or Reconfiguring ends with the state
    that it waits for and its rings, or with Closing.
    """
    for start in every_facts():
        wanted = (
            start.online and start.hotplug_done and not start.elsewhere and start.ours is not State.UNKNOWN
        )
        if not wanted or start.theirs not in USING:
            continue
        facts = start
        while (action := decide(facts)) not in ENDS:
            facts = replace(facts, **AFTER[action])  # type: ignore[arg-type]
        answer = State.CONNECTED if facts.theirs is State.CONNECTED else State.RECONFIGURED
        assert (facts.ours is answer and facts.attached and not facts.moved) or facts.ours is State.CLOSING, (
            start
        )


def test_it_settles() -> None:
    """From any facts the table reaches NOTHING within a few actions: no two rows alternate."""
    for start in every_facts():
        facts, walk = start, [decide(start)]
        while walk[-1] not in ENDS:
            facts = replace(facts, **AFTER[walk[-1]])  # type: ignore[arg-type]
            walk.append(decide(facts))
            assert len(walk) <= 7, (start, walk)


def test_offline_frontends_that_leave_end_in_destruction() -> None:
    for ours, theirs, attached in product(
        set(State) - {State.UNKNOWN}, (State.CLOSED, State.UNKNOWN), (False, True)
    ):
        facts = Facts(
            theirs,
            ours,
            online=False,
            hotplug_done=True,
            open=attached,
            attached=attached,
            broken=False,
            elsewhere=False,
            refused=False,
            moved=False,
        )
        while (action := decide(facts)) not in ENDS:
            facts = replace(facts, **AFTER[action])  # type: ignore[arg-type]
        assert action is Action.DESTROY


def test_the_document_is_current() -> None:
    document = Path(__file__).parents[2] / "docs" / "states.md"
    assert document.read_text() == render_document(), "make it again: see its first lines"
