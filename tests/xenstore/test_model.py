# SPDX-License-Identifier: Apache-2.0
"""The store against a plain dict without generations and accounts.

Every answer is the model's. A transaction sees a node as it was at the first look, and its own changes. When it
commits, the store is as if its requests had been made all at once at that moment, with the same answers; it may
only fail with EAGAIN if another request changed the store since it began.
"""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi.xs_wire import Errno, Op
from netback.xenstore.server import Server

from .talk import OK, Answer, Talker

DOMAINS = (0, 1, 2)
ROOT = "/"

# path -> [value, permissions, names of children in order]
Nodes = dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]
Step = tuple[int, "str | None", tuple[object, ...]]


def up(path: str) -> str:
    return path.rpartition("/")[0] or ROOT


def rights(domid: int, perms: tuple[str, ...]) -> str:
    if domid in (0, int(perms[0][1:])):
        return "rwo"
    letters = [perm[0] for perm in perms[1:] if perm[1:] == str(domid)] or [perms[0][0]]
    return {"n": "", "r": "r", "w": "w", "b": "rw"}[letters[0]]


class Refusal(Exception):
    def __init__(self, errno: Errno) -> None:
        self.errno = errno


class FirstLook(Nodes):
    """The nodes of a transaction: those of the store, each as it was at the first look, and its own changes."""

    def __init__(self, main: Nodes) -> None:
        super().__init__()
        self.main = main
        self.seen: set[str] = set()

    def __contains__(self, path: object) -> bool:
        if path not in self.seen:
            self.seen.add(str(path))
            if path in self.main:
                self[str(path)] = self.main[str(path)]
        return super().__contains__(path)


class Model:
    """The rules of nodes and permissions over one dict."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def answer(self, domid: int, op: Op, path: str, *more: str) -> Answer:
        try:
            return {
                Op.READ: self.read,
                Op.DIRECTORY: self.directory,
                Op.GET_PERMS: self.get_perms,
                Op.WRITE: self.write,
                Op.MKDIR: self.mkdir,
                Op.RM: self.rm,
                Op.SET_PERMS: self.set_perms,
            }[op](domid, path, *more)
        except Refusal as refusal:
            return refusal.errno

    def find(self, domid: int, path: str, wanted: str) -> bool:
        if path in self.nodes:
            if not set(wanted) <= set(rights(domid, self.nodes[path][1])):
                raise Refusal(Errno.EACCES)
            return True
        if domid == 0:
            return False
        while path not in self.nodes:
            path = up(path)
        if not set(wanted) & set(rights(domid, self.nodes[path][1])):
            raise Refusal(Errno.EACCES)
        return False

    def need(self, domid: int, path: str, wanted: str) -> None:
        if not self.find(domid, path, wanted):
            raise Refusal(Errno.ENOENT)

    def read(self, domid: int, path: str) -> str:
        self.need(domid, path, "r")
        return self.nodes[path][0]

    def directory(self, domid: int, path: str) -> str:
        self.need(domid, path, "r")
        return " ".join(self.nodes[path][2])

    def get_perms(self, domid: int, path: str) -> str:
        self.need(domid, path, "r")
        return " ".join(self.nodes[path][1])

    def make(self, domid: int, path: str) -> None:
        if path in self.nodes:
            return
        self.make(domid, up(path))
        value, perms, children = self.nodes[up(path)]
        self.nodes[up(path)] = value, perms, (*children, path.rpartition("/")[2])
        if domid != 0:
            perms = (f"{perms[0][0]}{domid}", *perms[1:])
        self.nodes[path] = "", perms, ()

    def mkdir(self, domid: int, path: str) -> str:
        self.find(domid, path, "w")
        self.make(domid, path)
        return OK

    def write(self, domid: int, path: str, value: str) -> str:
        self.mkdir(domid, path)
        self.nodes[path] = value, *self.nodes[path][1:]
        return OK

    def rm(self, domid: int, path: str) -> str:
        there = self.find(domid, path, "w")
        if path == ROOT:
            raise Refusal(Errno.EINVAL)
        if up(path) not in self.nodes:
            raise Refusal(Errno.ENOENT)
        if there:
            for below in self.subtree(
                path
            ):  # with a name twice where a transaction that will fail sees it so
                self.nodes.pop(below, None)
            value, perms, children = self.nodes[up(path)]
            name = path.rpartition("/")[2]
            self.nodes[up(path)] = value, perms, tuple(child for child in children if child != name)
        return OK

    def subtree(self, path: str) -> list[str]:
        if path not in self.nodes:
            return []
        return [path, *(found for name in self.nodes[path][2] for found in self.subtree(f"{path}/{name}"))]

    def set_perms(self, domid: int, path: str, *perms: str) -> str:
        self.need(domid, path, "wo")
        value, old, children = self.nodes[path]
        if domid != 0 and old[0][1:] != perms[0][1:]:
            raise Refusal(Errno.EPERM)
        self.nodes[path] = value, perms, children
        return OK


paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
any_path = st.one_of(paths, paths, paths, st.just(ROOT))
perms = st.lists(
    st.builds("{}{}".format, st.sampled_from("nrwb"), st.sampled_from(DOMAINS)), min_size=1, max_size=3
)
requests = st.one_of(
    st.tuples(st.just(Op.WRITE), any_path, st.sampled_from(["1", "2", ""])),
    st.tuples(st.just(Op.WRITE), any_path, st.sampled_from(["1", "2", ""])),
    st.tuples(st.sampled_from([Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.MKDIR, Op.RM]), any_path),
    st.tuples(st.just(Op.SET_PERMS), any_path, perms).map(lambda parts: (*parts[:2], *parts[2])),
)
# A request with a label that is not in use begins a transaction.
plain = st.tuples(st.sampled_from(DOMAINS), st.none(), requests)
labels = st.sampled_from("st")
ends = st.sampled_from([("commit",), ("commit",), ("drop",)])
steps = st.one_of(
    plain, st.tuples(st.sampled_from(DOMAINS[:2]), labels, st.one_of(requests, requests, requests, ends))
)


CHANGING = (Op.WRITE, Op.MKDIR, Op.RM, Op.SET_PERMS)


@dataclass
class Copy:
    """A transaction: its own model, how often the store had changed when it began, the answers given."""

    model: Model
    changes: int
    log: list[tuple[tuple[object, ...], Answer]] = field(default_factory=list)

    @property
    def changing(self) -> bool:
        return any(turn[0] in CHANGING and answer == OK for turn, answer in self.log)


class Game:
    """Plays steps on the store and on the model, and compares."""

    def __init__(self) -> None:
        server = Server()
        for domid in DOMAINS[1:]:
            server.introduce(domid, home=False)
        self.talkers = {domid: Talker(server, domid) for domid in DOMAINS}
        self.main: Nodes = {ROOT: ("", ("n0",), ())}
        self.talkers[0].ask(Op.RM, "/tool")
        self.open: dict[tuple[int, str], Copy] = {}
        self.changes = 0

    def play(self, step: Step) -> None:
        domid, label, turn = step
        if label is None:
            self.request(domid, turn)
        elif turn[0] in ("commit", "drop"):
            self.end(domid, label, turn[0] == "commit")
        else:
            if (domid, label) not in self.open:
                assert self.talkers[domid].begin(label) == OK
                self.open[domid, label] = Copy(Model(FirstLook(self.main)), self.changes)
            self.request(domid, turn, label)

    def request(self, domid: int, turn: tuple[object, ...], label: str = "") -> None:
        op, *words = turn
        running = self.open.get((domid, label))
        model = running.model if running else Model(self.main)
        expected = model.answer(domid, op, *words)  # type: ignore[arg-type]
        talker = self.talkers[domid]
        assert talker.ask(op, *words, tx=talker.transactions[label]) == expected, turn  # type: ignore[arg-type]
        if running:
            running.log.append((turn, expected))
        else:
            self.changes += op in CHANGING and expected == OK

    def end(self, domid: int, label: str, commit: bool) -> None:
        if (domid, label) not in self.open:
            return
        copy = self.open.pop((domid, label))
        seen = [answer for _, answer in copy.log]
        talker = self.talkers[domid]
        answer = talker.ask(Op.TRANSACTION_END, "T" if commit else "F", tx=talker.transactions[label])
        if not commit:
            assert answer == OK
        elif answer == Errno.EAGAIN:
            assert self.changes > copy.changes, "EAGAIN although no other request changed the store"
        else:
            assert answer == OK
            now = Model(self.main)
            assert [now.answer(domid, *turn) for turn, _ in copy.log] == seen  # type: ignore[arg-type]
            self.changes += copy.changing

    def compare(self) -> None:
        """The whole tree, and that what each domain is said to own is what it owns."""
        dom0 = self.talkers[0]
        for path, (value, perms, children) in self.main.items():
            assert dom0.ask(Op.READ, path) == value
            assert dom0.ask(Op.GET_PERMS, path) == " ".join(perms)
            assert dom0.ask(Op.DIRECTORY, path) == " ".join(children)
        tree = dom0.connection.server.tree
        special = [b"@introduceDomain", b"@releaseDomain"]
        assert sorted(tree.nodes) == sorted([*special, *map(str.encode, self.main)])
        owners = [node.owner for node in tree.nodes.values()]
        assert {domid: number for domid, number in tree.owned.items() if number} == {
            domid: owners.count(domid) for domid in set(owners)
        }


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=50))
def test_the_store_is_the_model(case: list[Step]) -> None:
    game = Game()
    game.talkers[0].ask(Op.SET_PERMS, ROOT, "b0")
    game.main[ROOT] = "", ("b0",), ()
    for step in case:
        game.play(step)
    for domid, label in list(game.open):
        game.end(domid, label, commit=True)
    game.compare()
