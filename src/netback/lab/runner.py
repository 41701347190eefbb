# SPDX-License-Identifier: Apache-2.0
"""Finds scenarios and runs them; scenarios that can share a machine share one boot.

A scenario is a module in `scenarios/` with an `async def run(lab)`. Its docstring says what is set up, what is done and
what must hold. `SMOKE = True` puts it into the small set. `ROUNDS` is (smoke, full) for scenarios that repeat a step.
`HOST` names the host that it needs, a script of `init/`, if not the plain one. After each scenario nothing may be left
behind, and netback's log may hold no fault.
"""

import importlib
import inspect
import pkgutil
import time
import traceback
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from netback.errors import ConfigError, NetbackError
from netback.lab import scenarios
from netback.lab.host import BackendName, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import LabError, Options

TAIL = 15
FAULTS = ("Traceback", "unexpected", "CRITICAL")
"""Words that netback's log must never hold."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One module of `scenarios/`."""

    name: str
    module: ModuleType

    @property
    def smoke(self) -> bool:
        return getattr(self.module, "SMOKE", False)

    @property
    def backend(self) -> BackendName:
        return getattr(self.module, "BACKEND", "netback")

    @property
    def host(self) -> str:
        return getattr(self.module, "HOST", "dom0")

    @property
    def title(self) -> str:
        """The docstring's first line."""
        return (inspect.getdoc(self.module) or "").partition("\n")[0]

    async def run(self, lab: Lab, *, full: bool) -> str:
        """Run it with the rounds of its set; returns a remark to print, or an empty string."""
        known: dict[str, Any] = {}
        if hasattr(self.module, "ROUNDS"):
            known["rounds"] = self.module.ROUNDS[full]
        return await self.module.run(lab, **known) or ""


@dataclass(slots=True)
class Outcome:
    """The result of a scenario; `fault` is empty if it held."""

    scenario: Scenario
    seconds: float
    fault: str = field(default="")
    note: str = field(default="")


def find_scenarios() -> dict[str, Scenario]:
    """Every scenario by name."""
    found = {}
    for info in pkgutil.iter_modules(scenarios.__path__):
        module = importlib.import_module(f"{scenarios.__name__}.{info.name}")
        found[info.name.replace("_", "-")] = Scenario(info.name.replace("_", "-"), module)
    return found


def choose(names: Iterable[str], *, full: bool) -> list[Scenario]:
    """The named scenarios, else the smoke set, or all with `full`; in the order of their names, on which some count."""
    known = find_scenarios()
    wanted = list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(f"there is no scenario {unknown[0]!r}: {', '.join(known)}")
    if wanted:
        return [known[name] for name in known if name in wanted]
    return [scenario for scenario in known.values() if full or scenario.smoke]


async def run_all(
    chosen: list[Scenario], directory: Path, say: Say, *, options: Options, full: bool = False
) -> list[Outcome]:
    """Run each in turn. Scenarios of one host and backend share a boot; after a failure the others get a fresh one."""
    outcomes: list[Outcome] = []
    for host, backend in sorted({(scenario.host, scenario.backend) for scenario in chosen}):
        left = [scenario for scenario in chosen if (scenario.host, scenario.backend) == (host, backend)]
        boots = 0
        while left:
            boots += 1
            place = directory / f"{host}-{backend}-{boots}"
            try:
                async with open_lab(place, say, options=replace(options, host=host), backend=backend) as lab:
                    outcomes += await _run_until_fault(lab, left, say, full=full)
            except LabError as error:
                say(f"FAIL no {host} that serves vifs by {backend}: {error}")
                outcomes += [Outcome(scenario, 0, str(error)) for scenario in left]
                break
    return outcomes


async def _run_until_fault(lab: Lab, left: list[Scenario], say: Say, *, full: bool) -> list[Outcome]:
    """Run the remaining scenarios up to the first failure, since a failed one may leave the host in any state."""
    outcomes: list[Outcome] = []
    while left and not (outcomes and outcomes[-1].fault):
        outcome = await run_one(lab, left.pop(0), full=full)
        outcomes.append(outcome)
        mark = "FAIL" if outcome.fault else "ok"
        title = " ".join(filter(None, (outcome.scenario.title, outcome.note)))
        say(f"{mark:4} {outcome.scenario.name:16} {outcome.seconds:5.1f} s  {title}")
        if outcome.fault:
            say(_explain(lab, outcome))
    return outcomes


async def run_one(lab: Lab, scenario: Scenario, *, full: bool) -> Outcome:
    """Run one scenario, then check that nothing is left of it."""
    start = time.monotonic()
    outcome = Outcome(scenario, 0)
    try:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(lab.reset)
            outcome.note = await scenario.run(lab, full=full)
        for fault in FAULTS:
            if fault in lab.netback.log:
                raise LabError(f"netback's log has {fault!r}")
    except Exception as error:  # a scenario may raise anything, such as a parse error of unexpected output
        first = None if error.__suppress_context__ else error.__context__
        faults = [first, error]  # two faults if something was also left behind
        outcome.fault = "\n".join(_told(fault) for fault in faults if isinstance(fault, Exception))
    outcome.seconds = time.monotonic() - start
    return outcome


def _told(fault: Exception) -> str:
    """The error's message if it is one of netback's, else with the line that raised it."""
    if isinstance(fault, NetbackError | AssertionError) and str(fault):
        return str(fault)
    return "".join(traceback.format_exception(fault, chain=False)).rstrip()


def _explain(lab: Lab, outcome: Outcome) -> str:
    """The fault, and the last lines of every console."""
    lines = [outcome.fault]
    directory = lab.machine.directory
    for path in [
        directory / "dom0.console",
        directory / "netback.log",
        *sorted(directory.glob("consoles/*")),
    ]:
        if path.exists() and (text := path.read_text(errors="replace").strip()):
            lines.append(f"--- {path}")
            lines += [line[:200] for line in text.splitlines()[-TAIL:]]
    return "\n".join(lines)
