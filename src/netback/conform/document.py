# SPDX-License-Identifier: Apache-2.0
"""docs/conform.md, from the tables of rules and profiles: `python -m netback.conform.document > docs/conform.md`."""

from collections.abc import Iterable, Sequence
from typing import Any

from netback.conform import backend_rules, rules
from netback.conform.profiles import PROFILES, BackendProfile
from netback.conform.rule import Level, Rule


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _profiles(row: Rule[Any]) -> str:
    having = [profile.name for profile in PROFILES if row.when(profile)]
    return "all" if len(having) == len(PROFILES) else ", ".join(having)


def _level(row: Rule[Any]) -> str:
    return "fails" if row.level is Level.MUST else "warns"


def _offer(profile: BackendProfile) -> str:
    keys = [key if value == "1" else f"{key}={value}" for key, value in profile.offer.items() if value != "0"]
    return ", ".join(f"`{key}`" for key in keys) or "nothing"


def render() -> str:
    """The page."""
    frontends, backends = rules.RULES.rows, backend_rules.RULES.rows
    warns = sum(row.level is Level.SHOULD for row in frontends)
    return f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
# Conformance

Made by `make docs` (`python -m netback.conform.document`) from the tables in `src/netback/conform/`. The runs of
known frontends and backends are in [conform-results.md](conform-results.md).

`netback conform` drives a frontend, or a backend, through the protocol and judges it: {len(frontends)}
rules for frontends ({warns} of them warn), {
        len(backends)
    } for backends. Each verdict has its evidence, the values
that were seen.

## A frontend

```
netback conform --frontend './guest "$(dirname "$XENSTORED_PATH")"'      # examples/c/guest.c
netback conform --frontend 'netback guest --net null'                    # netback's own
netback conform --frontend 'python examples/reflecting_guest.py windows' # as another; it returns every frame
netback conform --frontend CMD --profile adversarial -v                  # one backend; the rules that hold, too
```

The command is run by `sh -c`, once for each backend profile, with the environment that `netback emulate --print-env`
prints: it [joins that emulated Xen](emulated-xen.md) as a domain. netback makes the device `device/vif/0` for the
first domain that joins (`--index` chooses another), plays a backend for it slot by slot, sends it frames of every
form that its keys allow, and takes the device away at the end. Then the command gets SIGTERM and, if that does not
end it, SIGKILL. Every process that it started ends with it, also one in a session or process group of its own.

A rule is judged only where the run gave it an occasion. Rules about frames that the guest sends need a guest that
sends: one that answers ARP, ping and neighbour solicitation at `--ip` and `--ip6` (the other end has the address
before), or one that returns frames of ethertype 88b5. `--limit` bounds every wait for the frontend, so a run ends
whatever the command does.

`--record FILE` keeps what was seen, with the guest's frames, in a new file for its owner alone (mode 0600), which
takes the place of an older one; a link is refused. `--replay FILE` judges it again: the verdicts are a function of the
recording. A file that was cut or edited is refused. `--seed` chooses the contents of the frames that are sent.

| output | |
|---|---|
| text, 80 columns | what fails and warns, with rule, source and evidence; the sums of each run; `-v`: what holds, too |
| `--json` | every rule and every verdict |
| `--junit FILE` | a suite for each run, a case for each rule; a warning is a case's output |
| `--tap` | a warning is `not ok # TODO`, which does not count |

Exit code 0: no rule fails. 1: a rule fails. 2: the request is invalid. Warnings do not count. Files are opened before
the first run; if one cannot be filled all the same, the verdicts are printed, and the exit code is 2.

## A backend

`netback conform --backend` is the guest of a device that is attached as any other, by `netback attach` or a
toolstack. It asks its backend one question after the other through netback's scripted netfront.

```
netback emulate --dir ~/xen &
netback run --platform emulated --dir ~/xen &
netback conform --backend --platform emulated --dir ~/xen &      # "domain 1: waits for device 0"
netback attach 1 --net tap:vifx --dir ~/xen
ip addr add 192.0.2.1/24 dev vifx && ip link set vifx up         # a host that answers ARP and ping: RX is judged, too
```

On real Xen it runs in a guest from which Linux's xen-netfront is kept out. `netback lab test conform` judges Linux's
xen-netback, QEMU's qnic and netback so, and `netback lab conform --kernel KERNEL` plays backends for a guest kernel's
own frontend.

## Profiles

Backends that are played for a frontend.

{_table(("profile", "what it does", "offers"), ((p.name, p.about, _offer(p)) for p in PROFILES))}

## Rules for frontends

*fails*: the two ends do not work together, or only by luck. *warns*: known frontends do so, and known backends cope.

{
        _table(
            ("rule", "what must hold", "else it", "source", "profiles"),
            ((f"`{row.id}`", row.text, _level(row), row.source, _profiles(row)) for row in frontends),
        )
    }

## Rules for backends

{
        _table(
            ("rule", "what must hold", "else it", "source"),
            ((f"`{row.id}`", row.text, _level(row), row.source) for row in backends),
        )
    }
"""


if __name__ == "__main__":
    print(render(), end="")
