# SPDX-License-Identifier: Apache-2.0
"""The store's answers, as transcripts: the asker, the transaction, the request and the answer.

Domain 0 may do anything; domains 1, 2 and 3 are introduced and own their homes. "0b" is another connection of
domain 0.
Sources: docs/misc/xenstore.txt, and what the C xenstored does where that is silent.
"""

import pytest

from netback.abi.xs_wire import Errno, Op

from .talk import BEGIN, EVENTS, NONE, OK, Row, run

HOME = "/local/domain/1"
E = Errno
READ, WRITE, MKDIR, RM, DIRECTORY = Op.READ, Op.WRITE, Op.MKDIR, Op.RM, Op.DIRECTORY
GET_PERMS, SET_PERMS, WATCH, UNWATCH = Op.GET_PERMS, Op.SET_PERMS, Op.WATCH, Op.UNWATCH
END = Op.TRANSACTION_END

BAD_PATHS = ("", "/a/", "//a", "/a//b", "a/", "/ü", "/a b", "/a:b", "/a+b")
BAD_PERMS = ("", "x1", "r", "r-1", "r1x", "r32752", "R1")

TRANSCRIPTS: dict[str, list[Row]] = {
    "a new store": [
        (0, NONE, (DIRECTORY, "/tool"), "xenstored"),
        (0, NONE, (GET_PERMS, "/"), "n0"),
        (0, NONE, (READ, "/"), ""),
        (0, NONE, (GET_PERMS, "@releaseDomain"), "n0"),
    ],
    "nodes": [
        (0, NONE, (READ, "/a"), E.ENOENT),
        (0, NONE, (WRITE, "/a/b/c", "value"), OK),  # makes what is missing above
        (0, NONE, (READ, "/a/b/c"), "value"),
        (0, NONE, (READ, "/a/b"), ""),
        (0, NONE, (WRITE, "/a/b", "a node has a value and children"), OK),
        (0, NONE, (DIRECTORY, "/a/b"), "c"),
        (0, NONE, (MKDIR, "/a/b"), OK),  # and leaves alone what is there
        (0, NONE, (READ, "/a/b"), "a node has a value and children"),
        (0, NONE, (MKDIR, "/a/z"), OK),
        (0, NONE, (WRITE, "/a/m", ""), OK),
        (0, NONE, (DIRECTORY, "/a"), "b z m"),  # in the order of their making
        (0, NONE, (DIRECTORY, "/a/m"), ""),
        (0, NONE, (DIRECTORY, "/nothing"), E.ENOENT),
    ],
    "removal": [
        (0, NONE, (WRITE, "/a/b/c", "x"), OK),
        (0, NONE, (RM, "/a/b"), OK),
        (0, NONE, (READ, "/a/b/c"), E.ENOENT),
        (0, NONE, (DIRECTORY, "/a"), ""),
        (0, NONE, (RM, "/a/b"), OK),  # the parent is there, the node is not: what was wanted
        (0, NONE, (RM, "/a/b/c"), E.ENOENT),  # no parent
        (0, NONE, (RM, "/"), E.EINVAL),
    ],
    "paths": [
        *[(0, NONE, (WRITE, path, "x"), E.EINVAL) for path in BAD_PATHS],
        (0, NONE, (WRITE, "@releaseDomain", "x"), E.EINVAL),
        (0, NONE, (READ, "@releaseDomain"), E.EINVAL),
        (0, NONE, (GET_PERMS, "@other"), E.ENOENT),
        (0, NONE, (WRITE, "/" + "p" * 3071, "x"), OK),
        (0, NONE, (WRITE, "/" + "p" * 3072, "x"), E.EINVAL),
        (0, NONE, (WRITE, "/Az0-_@", "x"), OK),
        (0, NONE, (WRITE, "relative", "to domain 0"), OK),
        (0, NONE, (READ, "/local/domain/0/relative"), "to domain 0"),
        (1, NONE, (WRITE, "data/x", "mine"), OK),
        (0, NONE, (READ, f"{HOME}/data/x"), "mine"),
        (1, NONE, (READ, "/" + "p" * 2048), E.EINVAL),  # longer than a guest may name
        (1, NONE, (MKDIR, "p" * 2000), OK),
    ],
    "a domain's rights": [
        (0, NONE, (GET_PERMS, HOME), "n1"),
        (0, NONE, (WRITE, "/secret/inner", "x"), OK),
        (1, NONE, (READ, "/secret/inner"), E.EACCES),
        (1, NONE, (READ, "/secret/none"), E.EACCES),  # nor may it know what is missing there
        (1, NONE, (WRITE, "/secret/inner", "y"), E.EACCES),
        (1, NONE, (RM, "/secret/inner"), E.EACCES),
        (1, NONE, (MKDIR, "/new"), E.EACCES),
        (1, NONE, (DIRECTORY, "/"), E.EACCES),
        (2, NONE, (READ, HOME), E.EACCES),
        (1, NONE, (READ, "none"), E.ENOENT),  # in its own home it may
        (1, NONE, (RM, "none/below"), E.ENOENT),
    ],
    "a node's list of permissions": [
        (0, NONE, (WRITE, "/n", "v"), OK),
        (0, NONE, (SET_PERMS, "/n", "r0", "n1", "w2", "b3"), OK),
        (0, NONE, (GET_PERMS, "/n"), "r0 n1 w2 b3"),
        (1, NONE, (READ, "/n"), E.EACCES),
        (2, NONE, (READ, "/n"), E.EACCES),
        (2, NONE, (WRITE, "/n", "two"), OK),
        (3, NONE, (READ, "/n"), "two"),
        (3, NONE, (WRITE, "/n", "three"), OK),
        (4, NONE, (READ, "/n"), "three"),  # not listed: the first entry's letter
        (4, NONE, (WRITE, "/n", "four"), E.EACCES),
        (3, NONE, (SET_PERMS, "/n", "b0"), E.EACCES),  # only the owner
        (3, NONE, (GET_PERMS, "/n"), "r0 n1 w2 b3"),
        (0, NONE, (SET_PERMS, "/n", "n1"), OK),
        (1, NONE, (SET_PERMS, "/n", "n1", "r2"), OK),
        (2, NONE, (READ, "/n"), "three"),
        (1, NONE, (SET_PERMS, "/n", "n2"), E.EPERM),  # gives nothing away
        (0, NONE, (SET_PERMS, "/n", "n2"), OK),
        (1, NONE, (GET_PERMS, "/n"), E.EACCES),
    ],
    "permission strings": [
        (0, NONE, (WRITE, "/n", "v"), OK),
        *[(0, NONE, (SET_PERMS, "/n", text), E.EINVAL) for text in BAD_PERMS],
        (0, NONE, (SET_PERMS, "/n"), E.EINVAL),
        (0, NONE, (SET_PERMS, "/none", "r1"), E.ENOENT),
        (0, NONE, (SET_PERMS, "/n", "n0", "r32751"), OK),
        (0, NONE, (GET_PERMS, "/n"), "n0 r32751"),
        (0, NONE, (SET_PERMS, "/n", "n32751"), E.ENOENT),  # an owner is a domain
        (0, NONE, (SET_PERMS, "/n", "n0"), OK),
    ],
    "new nodes inherit": [
        (0, NONE, (MKDIR, "/shared"), OK),
        (0, NONE, (SET_PERMS, "/shared", "n0", "b1", "r2"), OK),
        (0, NONE, (WRITE, "/shared/a", "x"), OK),
        (0, NONE, (GET_PERMS, "/shared/a"), "n0 b1 r2"),
        (1, NONE, (WRITE, "/shared/b/c", "x"), OK),
        (1, NONE, (GET_PERMS, "/shared/b"), "n1 b1 r2"),  # a guest owns what it makes
        (0, NONE, (GET_PERMS, "/shared/b/c"), "n1 b1 r2"),
        (2, NONE, (READ, "/shared/b/c"), "x"),
        (2, NONE, (MKDIR, "/shared/d"), E.EACCES),
        (2, NONE, (READ, "/shared/none"), E.ENOENT),  # may list, so may know
        (2, NONE, (RM, "/shared/none"), E.EACCES),
    ],
    "a target's rights": [
        (0, NONE, (WRITE, f"{HOME}/x", "v"), OK),
        (0, NONE, (WRITE, "/n", "v"), OK),
        (0, NONE, (SET_PERMS, "/n", "n0", "r1"), OK),
        (2, NONE, (READ, f"{HOME}/x"), E.EACCES),
        (0, NONE, (Op.SET_TARGET, "2", "1"), OK),
        (2, NONE, (WRITE, f"{HOME}/x", "w"), OK),
        (2, NONE, (SET_PERMS, f"{HOME}/x", "r1"), OK),
        (2, NONE, (READ, "/n"), "v"),
        (2, NONE, (WRITE, "/n", "w"), E.EACCES),
        (1, NONE, (READ, "/local/domain/2"), E.EACCES),  # not the other way round
        ("2b", NONE, (READ, "/n"), "v"),  # a later connection as well
        (0, NONE, (Op.RELEASE, "1"), OK),
        (2, NONE, (READ, "/n"), E.EACCES),
    ],
    "transactions are alone with their copy": [
        (0, NONE, (WRITE, "/a", "1"), OK),
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/a", "2"), OK),
        (0, "t", (WRITE, "/b/c", "new"), OK),
        (0, "t", (RM, "/tool"), OK),
        (0, "t", (READ, "/a"), "2"),
        (0, "t", (DIRECTORY, "/"), "local a b"),
        (0, NONE, (READ, "/a"), "1"),
        (0, NONE, (READ, "/b/c"), E.ENOENT),
        (0, NONE, (DIRECTORY, "/"), "tool local a"),
        (0, "t", (END, "T"), OK),
        (0, NONE, (READ, "/a"), "2"),
        (0, NONE, (READ, "/b/c"), "new"),
        (0, NONE, (DIRECTORY, "/"), "local a b"),
        (0, "t", (READ, "/a"), E.ENOENT),  # the transaction is no more
    ],
    "a transaction that is dropped": [
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/a", "2"), OK),
        (0, "t", (END, "F"), OK),
        (0, NONE, (READ, "/a"), E.ENOENT),
        (0, "t", (END, "T"), E.ENOENT),
    ],
    "conflicts": [
        (0, NONE, (WRITE, "/a", "1"), OK),
        (0, NONE, (WRITE, "/b", "1"), OK),
        # what was read has changed
        (0, "t", BEGIN, OK),
        (0, "t", (READ, "/a"), "1"),
        (0, NONE, (WRITE, "/a", "1"), OK),  # to the same value, even
        (0, "t", (READ, "/a"), "1"),
        (0, "t", (WRITE, "/b", "t"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        (0, NONE, (READ, "/b"), "1"),
        (0, "t", (END, "T"), E.ENOENT),
        # what was missing has come
        (0, "t", BEGIN, OK),
        (0, "t", (READ, "/c"), E.ENOENT),
        (0, NONE, (WRITE, "/c", "1"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        # what was listed has a child more
        (0, "t", BEGIN, OK),
        (0, "t", (DIRECTORY, "/c"), ""),
        (0, NONE, (WRITE, "/c/d", "1"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        # what was written is gone
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/c/d", "2"), OK),
        (0, NONE, (RM, "/c"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        (0, NONE, (READ, "/c"), E.ENOENT),
        # permissions count
        (0, "t", BEGIN, OK),
        (0, "t", (READ, "/a"), "1"),
        (0, NONE, (SET_PERMS, "/a", "r0"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        # below what is removed, something has come
        (0, "t", BEGIN, OK),
        (0, "t", (RM, "/b"), OK),
        (0, NONE, (WRITE, "/b/c/d", "1"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        (0, NONE, (READ, "/b/c/d"), "1"),
    ],
    "no conflict, no EAGAIN": [
        (0, NONE, (WRITE, "/a/x", "1"), OK),
        (0, NONE, (WRITE, "/b/x", "1"), OK),
        (0, "s", BEGIN, OK),
        ("0b", "t", BEGIN, OK),
        (0, "s", (WRITE, "/a/y", "s"), OK),
        ("0b", "t", (WRITE, "/b/y", "t"), OK),
        ("0b", "t", (RM, "/b/x"), OK),
        (0, NONE, (WRITE, "/d", "between"), OK),
        (0, "s", (END, "T"), OK),
        ("0b", "t", (END, "T"), OK),
        (0, NONE, (DIRECTORY, "/a"), "x y"),
        (0, NONE, (DIRECTORY, "/b"), "y"),
        (0, NONE, (READ, "/d"), "between"),
    ],
    "one of two wins": [
        (0, NONE, (WRITE, "/a", "1"), OK),
        (0, "s", BEGIN, OK),
        ("0b", "t", BEGIN, OK),
        (0, "s", (WRITE, "/a", "s"), OK),
        ("0b", "t", (WRITE, "/a", "t"), OK),
        ("0b", "t", (END, "T"), OK),
        (0, "s", (END, "T"), E.EAGAIN),
        (0, NONE, (READ, "/a"), "t"),
    ],
    "made and removed in one transaction": [
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/a/b", "x"), OK),
        (0, "t", (RM, "/a"), OK),
        (0, "t", (END, "T"), OK),
        (0, NONE, (READ, "/a"), E.ENOENT),
        (0, NONE, (DIRECTORY, "/"), "tool local"),
    ],
    "transactions and their numbers": [
        (0, "t", BEGIN, OK),
        (0, "t", (Op.TRANSACTION_START,), E.EBUSY),  # they do not nest
        (0, "t", (END, "X"), E.EINVAL),
        (0, "t", (END, "T"), OK),
        (0, NONE, (END, "T"), E.ENOENT),
        (0, "t", BEGIN, OK),
        (0, "t", (Op.RESET_WATCHES,), OK),
        (0, "t", (END, "T"), E.ENOENT),
    ],
    "watches": [
        (0, NONE, (WATCH, "/a", "tok"), OK),
        (0, NONE, EVENTS, "/a tok"),  # once at once, though there is no such node
        (0, NONE, (WATCH, "/a", "tok"), E.EEXIST),
        (0, NONE, (WATCH, "/a", "other"), OK),
        (0, NONE, EVENTS, "/a other"),
        (0, NONE, (WRITE, "/a", "1"), OK),
        (0, NONE, EVENTS, "/a tok, /a other"),
        ("0b", NONE, (WRITE, "/a/b/c", "1"), OK),
        (0, NONE, EVENTS, "/a/b/c tok, /a/b/c other"),
        (0, NONE, (UNWATCH, "/a", "other"), OK),
        (0, NONE, (UNWATCH, "/a", "other"), E.ENOENT),
        (0, NONE, (SET_PERMS, "/a/b", "r0"), OK),
        (0, NONE, EVENTS, "/a/b tok"),
        (0, NONE, (MKDIR, "/a/b"), OK),  # changes nothing
        (0, NONE, (READ, "/a"), "1"),
        (0, NONE, (WRITE, "/ab", "1"), OK),  # not below /a
        (0, NONE, EVENTS, ""),
        (0, NONE, (RM, "/a/b"), OK),
        (0, NONE, EVENTS, "/a/b tok"),  # one event for the whole
        (0, NONE, (RM, "/a/b"), OK),
        (0, NONE, EVENTS, ""),
        (0, NONE, (Op.RESET_WATCHES,), OK),
        (0, NONE, (WRITE, "/a", "2"), OK),
        (0, NONE, EVENTS, ""),
    ],
    "a watch on the root hears all": [
        (0, NONE, (WATCH, "/", "t"), OK),
        (0, NONE, (WRITE, "/a/b", "t"), OK),
        (0, NONE, EVENTS, "/ t, /a/b t"),
    ],
    "removal of a parent": [
        (0, NONE, (WRITE, "/a/b/c", "1"), OK),
        (0, NONE, (WATCH, "/a/b/c", "t"), OK),
        (0, NONE, (WATCH, "/a/b", "u"), OK),
        (0, NONE, (WATCH, "/a/b/c/none", "v"), OK),
        (0, NONE, EVENTS, "/a/b/c t, /a/b u, /a/b/c/none v"),
        (0, NONE, (RM, "/a"), OK),
        (0, NONE, EVENTS, "/a/b/c t, /a/b u"),  # each with its own path, and only what was there
        (0, NONE, (WRITE, "/a/b/c", "back"), OK),
        (0, NONE, EVENTS, "/a/b/c t, /a/b/c u"),
    ],
    "relative watches": [
        (1, NONE, (WATCH, "device", "rel"), OK),
        (1, NONE, (WATCH, f"{HOME}/device", "abs"), OK),
        (1, NONE, EVENTS, f"device rel, {HOME}/device abs"),
        (1, NONE, (WRITE, "device/vif/0", ""), OK),
        (1, NONE, EVENTS, f"device/vif/0 rel, {HOME}/device/vif/0 abs"),
        (0, NONE, (RM, HOME), OK),
        (1, NONE, EVENTS, f"device rel, {HOME}/device abs"),
        (1, NONE, (UNWATCH, f"{HOME}/device", "rel"), OK),
        (1, NONE, (UNWATCH, "device", "abs"), OK),
    ],
    "watches see what transactions commit": [
        (0, NONE, (WRITE, "/w/x", "1"), OK),
        (0, NONE, (WATCH, "/w", "t"), OK),
        (0, NONE, EVENTS, "/w t"),
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/w/a", "1"), OK),
        (0, "t", (WRITE, "/w/a", "2"), OK),
        (0, "t", (WATCH, "/other", "u"), OK),  # a watch is of the connection, whatever the transaction
        (0, "t", (RM, "/w/x"), OK),
        (0, NONE, EVENTS, "/other u"),
        (0, "t", (END, "T"), OK),
        (0, NONE, EVENTS, "/w/a t, /w/x t"),
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/w/a", "1"), OK),
        (0, "t", (END, "F"), OK),
        (0, NONE, EVENTS, ""),
        (0, "t", BEGIN, OK),
        (0, "t", (RM, "/w"), OK),
        (0, "t", (END, "T"), OK),
        (0, NONE, EVENTS, "/w t"),
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/w/a", "1"), OK),
        (0, NONE, (RM, "/other"), OK),
        (0, NONE, (WRITE, "/w", "1"), OK),
        (0, NONE, EVENTS, "/w t"),
        (0, "t", (END, "T"), E.EAGAIN),
        (0, NONE, EVENTS, ""),
    ],
    "no events of what one may not read": [
        (0, NONE, (MKDIR, "/d/hidden"), OK),
        (0, NONE, (WRITE, "/d/hidden/open", "x"), OK),
        (0, NONE, (SET_PERMS, "/d/hidden/open", "n0", "r1"), OK),
        (1, NONE, (WATCH, "/d", "t"), OK),
        (1, NONE, EVENTS, "/d t"),  # the first tells nothing
        (0, NONE, (WRITE, "/d/hidden", "1"), OK),
        (0, NONE, (WRITE, "/d/hidden/other", "1"), OK),
        (1, NONE, EVENTS, ""),
        (0, NONE, (WRITE, "/d/hidden/open", "y"), OK),
        (1, NONE, EVENTS, "/d/hidden/open t"),
        (0, NONE, (RM, "/d/hidden/open"), OK),
        (1, NONE, EVENTS, "/d/hidden/open t"),  # it could be read until now
        (0, NONE, (SET_PERMS, "/d", "n0", "r1"), OK),
        (1, NONE, EVENTS, "/d t"),
        (0, NONE, (WRITE, "/d/hidden", "2"), OK),
        (1, NONE, EVENTS, "/d/hidden t"),  # a caller that may list the parent knows of it
        (0, NONE, (SET_PERMS, "/d", "n0"), OK),
        (1, NONE, EVENTS, "/d t"),  # the last that it hears
        (0, NONE, (WRITE, "/d/hidden", "3"), OK),
        (1, NONE, EVENTS, ""),
    ],
    "domains come and go": [
        (0, NONE, (WATCH, "@introduceDomain", "in"), OK),
        (0, NONE, (WATCH, "@releaseDomain", "out"), OK),
        (1, NONE, (WATCH, "@releaseDomain", "out"), OK),
        (1, NONE, EVENTS, "@releaseDomain out"),
        (0, NONE, EVENTS, "@introduceDomain in, @releaseDomain out"),
        (0, NONE, (Op.IS_DOMAIN_INTRODUCED, "5"), "F"),
        (0, NONE, (Op.INTRODUCE, "5", "1", "1"), OK),
        (0, NONE, EVENTS, "@introduceDomain in"),
        (0, NONE, (Op.IS_DOMAIN_INTRODUCED, "5"), "T"),
        (0, NONE, (Op.INTRODUCE, "5", "1", "1"), OK),  # again: only its event channel is replaced
        (0, NONE, EVENTS, ""),
        (0, NONE, (Op.RESUME, "5"), OK),
        (0, NONE, (Op.RELEASE, "5"), OK),
        (0, NONE, EVENTS, "@releaseDomain out"),
        (1, NONE, EVENTS, ""),  # for domain 0 alone
        (0, NONE, (Op.RELEASE, "5"), E.ENOENT),
        (0, NONE, (Op.RESUME, "5"), E.ENOENT),
        (0, NONE, (Op.IS_DOMAIN_INTRODUCED, "5"), "F"),
        (0, NONE, (SET_PERMS, "@releaseDomain", "n0", "r1"), OK),  # unless it says otherwise
        (1, NONE, EVENTS, "@releaseDomain out"),
        (0, NONE, (Op.RELEASE, "2"), OK),
        (1, NONE, EVENTS, "@releaseDomain out"),
        (0, NONE, (Op.IS_DOMAIN_INTRODUCED, "0"), "T"),
        (0, NONE, (Op.INTRODUCE, "0", "1", "1"), E.EINVAL),
        (0, NONE, (Op.INTRODUCE, "7", "1", "0"), E.EINVAL),
        (0, NONE, (Op.INTRODUCE, "7", "1"), E.EINVAL),
        (0, NONE, (Op.INTRODUCE, "40000", "1", "1"), E.EINVAL),
        (0, NONE, (Op.RELEASE, "0"), E.EINVAL),
        (0, NONE, (Op.SET_TARGET, "1", "9"), E.ENOENT),
        (0, NONE, (Op.SET_TARGET, "1", "9", "more"), E.ENOENT),
        *[(0, NONE, (op, "40000"), E.ENOENT) for op in (Op.RELEASE, Op.RESUME)],  # no domain, as any other
        (0, NONE, (Op.RELEASE, "-1"), E.ENOENT),
        (0, NONE, (Op.IS_DOMAIN_INTRODUCED, "-1"), "F"),
        (0, NONE, (Op.GET_DOMAIN_PATH, "40000"), "/local/domain/40000"),
        (0, NONE, (Op.GET_DOMAIN_PATH, "9"), "/local/domain/9"),
        (1, NONE, (Op.GET_DOMAIN_PATH, "1"), HOME),
        (1, NONE, (Op.GET_DOMAIN_PATH, "x"), E.EINVAL),
    ],
    "what a released domain leaves": [
        (0, NONE, (WATCH, HOME, "t"), OK),
        (0, NONE, (WRITE, "/b/1/state", "4"), OK),
        (0, NONE, (SET_PERMS, "/b/1", "n0", "r1", "r2"), OK),
        (1, NONE, (WRITE, "device/vif/0/state", "4"), OK),
        (0, NONE, EVENTS, f"{HOME} t, {HOME}/device/vif/0/state t"),
        (0, NONE, (Op.RELEASE, "1"), OK),
        (0, NONE, EVENTS, f"{HOME} t"),  # what it owned goes
        (0, NONE, (READ, HOME), E.ENOENT),
        (0, NONE, (GET_PERMS, "/b/1"), "n0 r2"),  # the next domain 1 inherits nothing
        (0, NONE, (READ, "/b/1/state"), "4"),
        (1, NONE, (READ, "x"), None),  # its connection is gone
    ],
    "what a transaction makes and removes fires no watch": [
        (0, NONE, (MKDIR, "/b"), OK),
        (0, NONE, (WATCH, "/b", "t"), OK),
        (0, NONE, EVENTS, "/b t"),
        (0, "t", BEGIN, OK),
        (0, "t", (WRITE, "/b/1", "x"), OK),
        (0, "t", (RM, "/b/1"), OK),
        (0, "t", (MKDIR, "/b/2"), OK),
        (0, "t", (END, "T"), OK),
        (0, NONE, EVENTS, "/b/2 t"),
    ],
    "a transaction does not carry permissions over a domain's end": [
        (0, NONE, (MKDIR, "/b"), OK),
        (0, "t", BEGIN, OK),
        (0, "t", (SET_PERMS, "/b", "n0", "r1"), OK),
        (0, NONE, (Op.RELEASE, "1"), OK),
        (0, "t", (END, "T"), E.EAGAIN),
        (0, NONE, (GET_PERMS, "/b"), "n0"),
    ],
    "what a guest may not ask": [
        (1, NONE, (Op.INTRODUCE, "5", "1", "1"), E.EACCES),
        (1, NONE, (Op.RELEASE, "2"), E.EACCES),
        (1, NONE, (Op.RESUME, "2"), E.EACCES),
        (1, NONE, (Op.SET_TARGET, "1", "2"), E.EACCES),
        (1, NONE, (Op.IS_DOMAIN_INTRODUCED, "2"), E.EACCES),
        (1, NONE, (Op.CONTROL, "help"), E.EACCES),
        (1, NONE, (SET_PERMS, "@releaseDomain", "r0"), E.EACCES),
    ],
    "what is no request": [
        (0, NONE, (Op.WATCH_EVENT, "/a", "t"), E.ENOSYS),
        (0, NONE, (Op.ERROR, "EINVAL"), E.ENOSYS),
        (0, NONE, (20, "1"), E.ENOSYS),
        (0, NONE, (23,), E.ENOSYS),
        (0, NONE, (0xFFFF, "x"), E.ENOSYS),
    ],
    "control": [
        (0, NONE, (Op.CONTROL, "help"), "help, quota"),
        (0, NONE, (Op.CONTROL, "no-such-command"), E.EINVAL),
        (0, NONE, (Op.CONTROL, "quota"), E.EINVAL),
        (0, NONE, (Op.CONTROL, "quota", "9"), E.ENOENT),
        (1, NONE, (WATCH, "x", "t"), OK),
        (
            0,
            NONE,
            (Op.CONTROL, "quota", "1"),
            "Domain 1:\n"
            "nodes            :        1\n"
            "watches          :        1\n"
            "transactions     :        0\n"
            "dropped-events   :        0\n",
        ),
    ],
}


@pytest.mark.parametrize("chunk", [1 << 20, 1], ids=["whole", "bytewise"])
@pytest.mark.parametrize("rows", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(rows: list[Row], chunk: int) -> None:
    run(rows, chunk)
