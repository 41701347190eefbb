# SPDX-License-Identifier: Apache-2.0
"""The table of hostile guests' advisories: `python -m tests.advisories > docs/advisories.md`."""

from __future__ import annotations

from typing import NamedTuple


class Advisory(NamedTuple):
    """A row. CVEs stand as in the advisory, the year once where several follow each other."""

    number: str
    """Of the XSA; "none": a fix that never became one."""
    cves: str
    flaw: str
    rule: str
    """What netback does about it, or why it cannot apply."""
    tests: tuple[str, ...]
    """The tests that show it, as pytest names them."""


ADVISORIES = (
    Advisory(
        "39",
        "2013-0216, -0217",
        "Linux's netback: impossible ring indices cause endless loops and leaks",
        "indices are checked once per burst; an impossible one ends this vif and nothing more "
        "is answered; every loop is bounded",
        (
            "tests/hostile/test_rings.py::test_wild_req_prod",
            "tests/hostile/test_rings.py::test_a_ring_that_is_wild_from_the_start",
            "tests/hostile/test_rings.py::test_impossible_chains",
            "tests/hostile/test_control.py::test_an_impossible_index",
            "tests/hostile/test_queues.py::test_one_broken_queue_ends_the_vif",
            "tests/hostile/test_attacks.py::test_rx_slots_that_are_none",
        ),
    ),
    Advisory(
        "90",
        "2014-2580",
        "Linux's netback: a vif is disabled in a context that must not sleep",
        "a worker only records the fault; the control loop takes the vif down",
        ("tests/hostile/test_ends.py::test_a_broken_vif_goes",),
    ),
    Advisory(
        "115",
        "2020-29480",
        "xenstored: watches report nodes that their owner may not read",
        "an event goes only to connections that may read the node; a guest cannot reach "
        "another guest's nodes or the backend's",
        (
            "tests/hostile/test_store.py::test_the_store_is_full_for_the_guest_alone",
            "tests/xenstore/test_transcripts.py::test_transcript",
        ),
    ),
    Advisory(
        "155",
        "2015-8550",
        "backends read shared memory again after they checked it",
        "requests, and a frame's bytes, are copied once; the copy is checked and used",
        (
            "tests/hostile/test_record.py::test_requests_that_change_while_they_are_read_are_replayed",
            "tests/hostile/test_rings.py::test_requests_that_change_under_the_backend",
            "tests/hostile/test_rings.py::test_headers_that_change_under_the_backend",
            "tests/hostile/test_control.py::test_pages_that_change_while_they_are_used",
        ),
    ),
    Advisory(
        "157",
        "2015-8551, -8552",
        "Linux's pciback: missing checks; warnings caused by a guest fill the disk",
        "a vif has a budget of ten log lines in ten seconds; the rest is counted and reported "
        "with a later line",
        (
            "tests/hostile/test_store.py::test_states_that_flap",
            "tests/observe/test_trace.py::test_a_log_budget_counts_the_lines_that_it_leaves_out",
        ),
    ),
    Advisory(
        "175",
        "2016-4962",
        "libxl trusted what guests wrote into the store",
        "decisions use the backend's own directory; the frontend's keys are strict decimals in range",
        (
            "tests/hostile/test_store.py::test_nonsense_in_a_key",
            "tests/hostile/test_store.py::test_numbers_that_lead_nowhere",
            "tests/hostile/test_queues.py::test_nonsense_in_a_key_of_a_queue",
            "tests/hostile/test_store.py::test_nonsense_in_a_key_of_a_connected_guest",
        ),
    ),
    Advisory(
        "178",
        "2016-4963",
        "libxl trusted what driver domains wrote into the store",
        "the same strictness toward a frontend; nodes made by `attach` are writable by the "
        "backend's domain alone",
        (
            "tests/hostile/test_store.py::test_a_state_that_is_none",
            "tests/hostile/test_store.py::test_a_directory_that_comes_and_goes",
            "tests/hostile/test_store.py::test_nonsense_in_a_key",
        ),
    ),
    Advisory(
        "180",
        "2014-3672",
        "QEMU's log grew without limit at a guest's will",
        "few bytes of a guest reach the log, escaped, within its vif's budget",
        (
            "tests/hostile/test_store.py::test_states_that_flap",
            "tests/hostile/test_store.py::test_nonsense_in_a_key",
        ),
    ),
    Advisory(
        "197",
        "2016-9381",
        "QEMU read ring indices and contents twice",
        "`req_prod` is read once per burst; netback's own indices are private",
        (
            "tests/hostile/test_rings.py::test_requests_that_change_under_the_backend",
            "tests/dataplane/test_oracle_native.py::test_seeded_operations",
        ),
    ),
    Advisory(
        "206",
        "none",
        "xenstored: a guest's writes made transactions of others fail for ever",
        "transactions are short, retried with back-off and a bound, and never held during a wait",
        (
            "tests/hostile/test_store.py::test_a_guest_that_never_rests",
            "tests/xenstore/test_aio.py::test_a_transaction_that_always_conflicts_ends",
        ),
    ),
    Advisory(
        "216",
        "2017-10911",
        "responses carried stale bytes of the backend's stack",
        "a response is written as a whole slot with unused bytes zero",
        (
            "tests/hostile/test_rings.py::test_no_stale_byte_in_a_response",
            "tests/hostile/test_control.py::test_requests_of_every_type_in_a_full_ring",
        ),
    ),
    Advisory(
        "270",
        "2018-15471",
        "Linux's netback: hash mappings written out of bounds",
        "a mapping is copied once and checked in the copy: offset and size against the "
        "mapping without a sum that wraps, each entry against the number of queues",
        (
            "tests/hostile/test_control.py::test_grants_that_are_none",
            "tests/vif/test_control_messages.py::test_every_request_leads_where_the_model_leads",
        ),
    ),
    Advisory(
        "300",
        "2019-17351",
        "Linux: guests make a backend map without limit",
        "the rings of the offered number of queues are mapped, and at most 512 pages per "
        "queue that the guest stages, 16384 of all guests; frames are copied",
        (
            "tests/hostile/test_ends.py::test_guests_killed_in_a_burst",
            "tests/hostile/test_store.py::test_numbers_that_lead_nowhere",
            "tests/hostile/test_control.py::test_grants_to_stage_that_are_none",
            "tests/hostile/test_queues.py::test_a_queue_that_leads_nowhere",
        ),
    ),
    Advisory(
        "326",
        "2022-42311 to -42318",
        "xenstored: guests exhaust its memory",
        "a connection that does not read is not served; equal events wait once, all events up "
        "to a limit; transactions are limited",
        (
            "tests/xenstore/test_server.py::test_a_paused_client_is_not_served_until_it_reads",
            "tests/xenstore/test_server.py::test_equal_events_wait_once_and_others_to_the_limit",
        ),
    ),
    Advisory(
        "331",
        "2020-27675",
        "Linux: an event channel is closed while its event is handled",
        "the worker that handles a port also binds and unbinds it, between two bursts",
        (
            "tests/hostile/test_load.py::test_a_storm_of_empty_events",
            "tests/hostile/test_ends.py::test_both_ends_at_once",
        ),
    ),
    Advisory(
        "332",
        "2020-27673",
        "events at a high rate starve the backend's domain",
        "a port is unmasked after the work; events without work are unmasked with growing "
        "delay; with split event channels a port is judged by its own ring",
        (
            "tests/hostile/test_load.py::test_a_storm_of_empty_events",
            "tests/hostile/test_load.py::test_a_storm_with_work_is_no_storm",
            "tests/hostile/test_load.py::test_a_storm_beside_honest_work",
            "tests/dataplane/test_split.py::test_work_in_the_other_ring_does_not_excuse_a_storm",
            "tests/hostile/test_control.py::test_a_storm_of_empty_events",
        ),
    ),
    Advisory(
        "349",
        "2020-29568",
        "Linux: watch events queue without a bound",
        "waiting events of one path are merged; in a frontend's directory only changes of "
        "`state` and of the keys that a connected guest may change wake its device; a device "
        "that never rests waits for its turn",
        (
            "tests/hostile/test_store.py::test_a_flood_of_changes",
            "tests/xenbus/test_pace.py::test_devices_that_flap_share_one_lane",
            "tests/xenbus/test_refusals.py::test_guests_that_flap_leave_nobody_stuck",
            "tests/xenstore/test_aio.py::test_a_watch_that_nobody_takes_from_stays_small",
            "tests/hostile/test_store.py::test_a_flood_of_changes_to_live_keys",
        ),
    ),
    Advisory(
        "350",
        "2020-29569",
        "Linux's blkback: use after free when a frontend disconnects repeatedly",
        "a queue leaves its worker before any of it is freed; a disconnect may come at any "
        "time, any number of times",
        (
            "tests/hostile/test_ends.py::test_guests_killed_in_a_burst",
            "tests/hostile/test_ends.py::test_connections_again_and_again",
        ),
    ),
    Advisory(
        "354",
        "2020-29487",
        "XAPI: guests exhaust its memory through their part of the store",
        "the frontend's directory is read key by key, never as a whole; guests have quotas",
        (
            "tests/hostile/test_store.py::test_the_store_is_full_for_the_guest_alone",
            "tests/hostile/test_store.py::test_keys_that_nobody_asked_for",
        ),
    ),
    Advisory(
        "361",
        "2021-26932",
        "Linux: failed grant mappings are not noticed",
        "every status is checked; it is preset to an error",
        (
            "tests/hostile/test_rings.py::test_bad_grants_are_answered_error",
            "tests/dataplane/test_oracle_native.py::test_seeded_operations",
            "tests/hostile/test_attacks.py::test_rx_slots_that_are_none",
        ),
    ),
    Advisory(
        "362",
        "2021-26931",
        "Linux: backends treat errors caused by a guest as their own bugs",
        "a guest's fault ends its frame or its vif",
        (
            "tests/hostile/test_rings.py::test_bad_grants_are_answered_error",
            "tests/hostile/test_store.py::test_numbers_that_lead_nowhere",
        ),
    ),
    Advisory(
        "363",
        "2021-26934",
        "Linux's display frontend: memory allocated by the backend",
        "cannot apply: no such feature is offered; the offer is a fixed list",
        ("tests/xenbus/test_lifecycle.py::test_a_new_device_is_offered",),
    ),
    Advisory(
        "365",
        "2021-26930",
        "Linux's blkback: errors of grant mappings are overwritten",
        "an error of one copy fails its whole frame",
        ("tests/hostile/test_rings.py::test_bad_grants_are_answered_error",),
    ),
    Advisory(
        "367",
        "2021-28038",
        "Linux's netback: errors of grant mappings are ignored",
        "a frame is sent only if every byte of it was copied",
        ("tests/hostile/test_rings.py::test_bad_grants_are_answered_error",),
    ),
    Advisory(
        "371",
        "2021-28688",
        "Linux's blkback: persistent grants leak when a frontend disconnects",
        "only rings and staged pages are mapped beyond a burst; every path unmaps them",
        (
            "tests/hostile/test_ends.py::test_connections_again_and_again",
            "tests/hostile/test_ends.py::test_guests_killed_in_a_burst",
            "tests/hostile/test_control.py::test_grants_to_stage_that_are_none",
            "tests/hostile/test_queues.py::test_a_queue_that_leads_nowhere",
            "tests/hostile/test_attacks.py::test_it_leaves_in_a_burst",
        ),
    ),
    Advisory(
        "374",
        "2021-28691",
        "Linux's netback: a bad packet ends the RX thread, which the later teardown uses",
        "a broken queue is a normal state to take down; one thread serves all queues and ends "
        "with the program",
        (
            "tests/hostile/test_ends.py::test_a_broken_vif_goes",
            "tests/hostile/test_rings.py::test_impossible_chains",
            "tests/hostile/test_ends.py::test_guests_killed_in_a_burst",
            "tests/hostile/test_queues.py::test_one_broken_queue_ends_the_vif",
        ),
    ),
    Advisory(
        "376",
        "none",
        "frontends trust a backend's answers",
        "netback's frontend checks ids, sizes and indices; as a backend it answers each slot once",
        (
            "tests/frontend/test_lies.py::test_a_lie_breaks_the_link_and_nothing_else",
            "tests/frontend/test_lies.py::test_random_lies_never_do_more_than_break_the_link",
        ),
    ),
    Advisory(
        "391",
        "2021-28711 to -28713",
        "backends flood frontends with events",
        "the guest is notified if its event index asks for it, at most once per burst",
        ("tests/hostile/test_load.py::test_a_storm_that_nobody_asked_for_does_not_come_back",),
    ),
    Advisory(
        "392",
        "2021-28714, -28715",
        "Linux's netback: frames pile up for a guest that does not take them; one free slot "
        "defeats the timeout",
        "at most the 16 frames of one read wait, for exactly the slots that the next frame "
        "needs; meanwhile nothing is read and the network's own queue drops; frames expire "
        "after 10 s, and a guest that takes none for 60 s has no carrier",
        (
            "tests/dataplane/test_stall.py::test_a_guest_with_a_slot_too_few_is_stalled",
            "tests/hostile/test_load.py::test_a_guest_that_never_receives",
            "tests/hostile/test_load.py::test_a_guest_that_leaves_one_slot_too_few",
        ),
    ),
    Advisory(
        "396",
        "2022-23036 to -23042",
        "Linux's frontends free pages that a backend may still use",
        "as a backend: rings are unmapped before Closing or Closed is written; netback's "
        "frontend keeps a page that is still in use",
        (
            "tests/xenbus/test_lifecycle.py::test_closing",
            "tests/hostile/test_store.py::test_numbers_that_lead_nowhere",
        ),
    ),
    Advisory(
        "403",
        "2022-26365, -33740 to -33742",
        "Linux's frontends expose stale bytes in shared pages",
        "a backend grants nothing; pages of netback's frontend start as zeros, and nothing is "
        "written behind a frame",
        ("tests/hostile/test_rings.py::test_no_stale_byte_in_a_response",),
    ),
    Advisory(
        "405",
        "2022-33743",
        "Linux's netfront uses freed buffers with XDP",
        "cannot apply: netback's frontend runs no XDP program, and its buffers live as long as its rings",
        ("tests/frontend/test_lies.py::test_random_lies_never_do_more_than_break_the_link",),
    ),
    Advisory(
        "414",
        "2022-42309",
        "xenstored: guests crash it",
        "every request is answered, or ends its connection",
        ("tests/xenstore/test_server.py::test_any_request_gets_exactly_one_answer",),
    ),
    Advisory(
        "415",
        "2022-42310",
        "xenstored: nodes without a parent cannot be removed",
        "a request changes the tree completely or not at all",
        ("tests/xenstore/test_model.py::test_the_store_is_the_model",),
    ),
    Advisory(
        "416",
        "2022-42319",
        "xenstored: memory is held until a guest reads its answer",
        "a request's memory is freed when it is answered; a connection that does not read is not served",
        ("tests/xenstore/test_server.py::test_a_paused_client_is_not_served_until_it_reads",),
    ),
    Advisory(
        "417",
        "2022-42320",
        "xenstored: nodes of a dead domain pass to the next domain of its number",
        "a domain's end removes its nodes and its entries in other nodes' permissions",
        ("tests/xenstore/test_server.py::test_a_domain_comes_back_to_an_empty_home",),
    ),
    Advisory(
        "418",
        "2022-42321",
        "xenstored: removing deep trees overflows the stack",
        "no walk of the tree is recursive",
        ("tests/xenstore/test_server.py::test_a_guest_may_nest_as_deep_as_a_path_is_long",),
    ),
    Advisory(
        "419",
        "2022-42322, -42323",
        "xenstored: cooperating guests create nodes without limit",
        "a node counts for its owner, and a guest cannot give a node away",
        (
            "tests/xenstore/test_server.py::test_a_guest_owns_so_many_nodes",
            "tests/xenstore/test_model.py::test_the_store_is_the_model",
        ),
    ),
    Advisory(
        "420",
        "2022-42324",
        "oxenstored: 32-bit numbers are cut to 31 bits",
        "cannot apply: Python's integers have no width, and ids are compared as four bytes",
        ("tests/xenstore/test_wire.py::test_a_message_is_these_bytes_and_back",),
    ),
    Advisory(
        "421",
        "2022-42325, -42326",
        "xenstored: transactions create nodes without limit",
        "a transaction has its own account, checked again at commit",
        (
            "tests/xenstore/test_server.py::test_a_transaction_gives_no_more_nodes",
            "tests/xenstore/test_server.py::test_two_transactions_together_give_no_more_nodes",
        ),
    ),
    Advisory(
        "423",
        "2022-3643",
        "Linux's netback: headers split over slots reach a NIC's driver in pieces",
        "every frame is contiguous in private memory, however its slots were split",
        (
            "tests/hostile/test_rings.py::test_headers_split_byte_by_byte",
            "tests/hostile/test_rings.py::test_many_slots_behind_a_tiny_head",
        ),
    ),
    Advisory(
        "424",
        "2022-42328, -42329",
        "Linux's netback: a deadlock when frames are dropped",
        "a queue belongs to one worker; the few locks (a rate-limited vif's credit, a switch's "
        "lanes) are held for a moment, never over a wait or another lock",
        (
            "tests/dataplane/test_limit.py::test_queues_of_two_workers_share_one_credit",
            "tests/hostile/test_ends.py::test_a_broken_vif_goes",
            "tests/hostile/test_load.py::test_a_guest_that_never_receives",
        ),
    ),
    Advisory(
        "432",
        "2023-34319",
        "Linux's netback: a short head and many slots overrun an array",
        "slots are counted before anything is staged: 20 are served, 21 are answered ERROR, 22 end the vif",
        (
            "tests/hostile/test_rings.py::test_many_slots_behind_a_tiny_head",
            "tests/hostile/test_rings.py::test_one_slot_too_many",
            "tests/hostile/test_rings.py::test_impossible_chains",
        ),
    ),
    Advisory(
        "441",
        "2023-34324",
        "Linux: a deadlock when an event channel is closed while events are handled",
        "no lock is held over an unbind, and the queue has left its worker before",
        ("tests/hostile/test_ends.py::test_both_ends_at_once",),
    ),
    Advisory(
        "448",
        "2023-46838",
        "Linux's netback: slots of length zero lead to a null dereference",
        "answered OKAY; they contribute nothing, and their grants are not used",
        ("tests/hostile/test_rings.py::test_zero_length_slots",),
    ),
    Advisory(
        "465",
        "2024-53240",
        "Linux's netfront: a backend that goes during suspend crashes it",
        "netback's frontend may lose its backend at any time and reconnects; so does its backend",
        (
            "tests/frontend/test_handshake.py::test_a_device_that_is_taken_away_and_given_again",
            "tests/hostile/test_ends.py::test_connections_again_and_again",
        ),
    ),
    Advisory(
        "none",
        "none",
        "Linux's netback, February 2026: a frontend that asks for no queue",
        "1 to the offered number of queues are accepted",
        (
            "tests/hostile/test_store.py::test_numbers_that_lead_nowhere",
            "tests/xenbus/test_queues.py::test_a_number_that_was_not_offered",
            "tests/hostile/test_queues.py::test_a_queue_that_leads_nowhere",
        ),
    ),
)

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# Hostile guests: every advisory, and the test for it

A guest owns its memory, its grants, its events and its directory in the store, and may write anything there. Two
outcomes are allowed: the vif closes, or the frame is answered ERROR, with the reason in the backend's `error/` node
and in the log. These are not: another vif's frames stop, a traceback, growth of memory, descriptors, mappings or log,
a byte of another guest.

The table has one row for each [Xen Security Advisory](https://xenbits.xen.org/xsa/) that concerns backends,
frontends, event channels or the store: the flaw, netback's rule, and the test that shows it, or the reason why it
cannot apply. The tests in `tests/hostile` run a hostile guest beside an honest one on one worker; those of
`test_attacks.py` run it as each frontend of [frontends.md](frontends.md). After each test the honest guest's frames
pass both ways, the log is short and has no traceback, and everything that the hostile guest had opened or mapped is
released. A test checks that the table is complete and that every test named in it exists. `make fuzz` and
`make sanitize` look for faults that no row covers.

| XSA | CVE | flaw | netback's rule | shown by |
|---|---|---|---|---|"""


def render_document() -> str:
    """The page."""
    rows = (
        f"| {row.number} | {row.cves} | {row.flaw} | {row.rule} | {' '.join(f'`{test}`' for test in row.tests)} |"
        for row in ADVISORIES
    )
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    print(render_document(), end="")
