# SPDX-License-Identifier: Apache-2.0
"""netback's netfront judges Linux's xen-netback, QEMU's qnic and netback, rule by rule (`netback conform --backend`).

Linux's netfront is kept out of the guest. Each backend serves it in turn; netback breaks no rule, and the remark says
what the others break. The recordings stay in the lab's directory as NAME.runs, with NAME.made, of what they are, and
NAME.asked, when each question was asked.
"""

import base64

from netback.conform import recording
from netback.conform.answers import BackendSeen
from netback.conform.backend_rules import RULES
from netback.conform.rule import Outcome
from netback.lab.bench.backends import BACKENDS, NETBACK, LabBackend
from netback.lab.conform import made_of
from netback.lab.host import Guest, Lab
from netback.lab.machine import LabError

BACKEND = "none"
ADDRESS = "10.0.0.2"
"""The guest's; dom0 has the address before it."""
SECONDS = 1800.0
_CONFORM = f"netback conform --backend --platform xen --ip {ADDRESS} --limit 30"
_ASK = f"rm -f /run/ended; (setsid {_CONFORM} --record /run/runs >/run/verdicts 2>/run/conform; touch /run/ended) &"
_ENDED = "until [ -e /run/ended ]; do sleep 0.2; done"
"""Not the end of its process, which stays a zombie: the guest's init reaps none while it waits for a command."""


async def run(lab: Lab) -> str:
    guest = await lab.create("g1", vif=(), python=True, more="netback.nofront")
    remarks, made = [], await made_of(lab)
    for backend in BACKENDS:
        seen = await ask(guest, backend, made)
        bad = [verdict for verdict in RULES.judge(seen) if verdict.outcome in (Outcome.FAIL, Outcome.WARN)]
        shown = "; ".join(f"{verdict.rule}: {verdict.evidence}" for verdict in bad)
        assert backend is not NETBACK or not bad, shown
        remarks.append(f"{backend.name} breaks {', '.join(verdict.rule for verdict in bad) or 'none'}")
    return f"({'; '.join(remarks)})"


async def ask(guest: Guest, backend: LabBackend, made: str) -> BackendSeen:
    """One backend's answers; its recording goes to the lab's directory as NAME.runs, and `made` as NAME.made."""
    await guest(_ASK)
    try:
        async with backend.serving(guest, link=False):
            await guest(_ENDED, seconds=SECONDS)
    except LabError as error:
        output = await guest("cat /run/conform", check=False)
        raise LabError(f"{backend.name}: {error}\nthe frontend printed:\n{output}") from error
    directory = guest.lab.machine.directory
    (directory / f"{backend.name}.asked").write_text(await guest("cat /run/conform"))
    encoded = await guest("base64 /run/runs")
    path = directory / f"{backend.name}.runs"
    path.with_suffix(".made").write_text(made)
    path.write_bytes(base64.b64decode(encoded))
    (seen,) = recording.load(path, "backend", BackendSeen)
    return seen
