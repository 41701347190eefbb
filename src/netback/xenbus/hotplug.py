# SPDX-License-Identifier: Apache-2.0
"""One device's hotplug script, where netback runs it instead of a toolstack (docs/decisions.md, Hotplug scripts).

The order is udev's: `add` and `online` once the link exists and the device is offered, `offline` and `remove` before
the link goes. `hotplug-status` is the record of it, which outlives this process: "connected" and "error" mean that
`online` ran and `offline` is due, anything else that no script ran, or none to its end.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from netback.abi.xenbus import XenbusState as State
from netback.errors import printable
from netback.observe.trace import LogBudget
from netback.xenbus.context import Context
from netback.xenbus.facts import Snapshot, read_backend
from netback.xenbus.names import DeviceName, remove_if_empty
from netback.xenbus.nic import Nic
from netback.xenbus.nodes import write_nodes
from netback.xenbus.scripts import ExitError, HotplugConfig, ScriptError, check_script
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback.xenbus")

DONE = "connected"
FAILED = "error"
_OFFERED = (
    State.INIT_WAIT,
    State.INITIALISED,
    State.CONNECTED,
    State.RECONFIGURING,
    State.RECONFIGURED,
)
"""Our states in which `online` may run: libxl starts it at InitWait."""


_MAX_FAILURE = 1000
"""Characters of a reason in the store, whose values are bounded."""


class Hotplug:
    """Runs the script of a device and its `nic`. `wake` makes the device call `follow` again.

    Whether netback runs it is decided when the device appears: a script that a toolstack has begun is not run twice.
    """

    def __init__(
        self,
        name: DeviceName,
        context: Context,
        budget: LogBudget,
        nic: Nic,
        wake: Callable[[], object],
    ) -> None:
        self._name, self._context, self._budget = name, context, budget
        self._nic, self._wake = nic, wake
        self._config = context.hotplug()
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._due = ""
        """The script whose `offline` is due; empty: none is."""
        self._failure = ""
        """Why `online` failed, until the nodes say so."""

    @property
    def runs(self) -> bool:
        """Whether netback runs this device's script."""
        return self._config is not None

    async def follow(self, snapshot: Snapshot) -> None:
        """Act on what was read: start `online`, or write that it failed. StoreError: the store refuses that."""
        script, status, facts = snapshot.script, snapshot.hotplug_status, snapshot.facts
        if self._config is None or not script:
            return
        self._take_result()
        if status in (DONE, FAILED):
            self._due = script
            if status == DONE:
                self._connected.set()
                if self._failure:
                    self._warn(f"{self._failure}; hotplug-status is {DONE!r} all the same")
            self._failure = ""
        elif not (facts.online and facts.open and facts.ours in _OFFERED):
            return
        elif self._failure:
            await self._write_failure()
        elif self._task is None:
            environment = await self._environment(script)
            await self._context.store.rm(f"{self._name.backend}/hotplug-error", missing_ok=True)
            self._nic.name_back()
            self._connected.clear()
            self._due = script
            self._task = asyncio.create_task(self._go_online(self._config, script, environment))
            self._task.add_done_callback(lambda _: self._wake())

    async def end(self) -> None:
        """The device goes: run `offline` and `remove` if `online` was begun. Their failures are logged."""
        await self.stop()
        script, config, self._due = self._due, self._config, ""
        if config is None or not script:
            return
        try:
            environment = await self._environment(script)
            for action in ("offline", "remove") if _may_run(config, script) else ():
                try:
                    await self._run(config, script, action, environment)
                except ScriptError as error:
                    self._warn(str(error))
            await self._forget()
        except StoreError as error:
            self._warn(str(error))

    async def stop(self) -> None:
        """Kill a script that runs. The next backend runs it again."""
        if (task := self._task) is not None:
            self._task = None
            task.cancel()
            await asyncio.wait((task,))

    async def _go_online(self, config: HotplugConfig, script: str, environment: Mapping[str, str]) -> None:
        """Run `add` and `online`, then wait for `hotplug-status`. ScriptError names the script and why it failed."""
        try:
            check_script(script, config.directories)
        except ScriptError as error:
            raise ScriptError(f"{script} {error}") from error
        with suppress(ExitError):  # as udev, which reads no exit code: scripts of libxl's time know no `add`
            await self._run(config, script, "add", environment)
        await self._run(config, script, "online", environment)
        try:
            async with asyncio.timeout(config.seconds):
                await self._connected.wait()
        except TimeoutError:
            raise ScriptError(
                f"{script} online ended, but hotplug-status was not {DONE!r} within {config.seconds:g} s"
            ) from None

    def _take_result(self) -> None:
        """Keep why `online` failed. Raises what is a fault of netback."""
        if (task := self._task) is not None and task.done():
            self._task = None
            try:
                task.result()
            except ScriptError as error:
                self._failure = printable(str(error))[:_MAX_FAILURE]

    async def _write_failure(self) -> None:
        """Write `hotplug-error`, unless the script did, and `hotplug-status`. The device then reports it."""
        known = await read_backend(self._context.store, self._name, "hotplug-error")
        nodes = {"hotplug-error": known or self._failure, "hotplug-status": FAILED}
        await write_nodes(self._context.store, self._name.backend, nodes)
        self._failure = ""

    async def _forget(self) -> None:
        """Record that nothing is due. A directory that the toolstack removed first, and a script made again, goes."""
        store, directory = self._context.store, self._name.backend

        async def body(tx: int) -> bool:
            gone = await store.read_or(f"{directory}/state", tx=tx) is None
            await store.rm(directory if gone else f"{directory}/hotplug-status", tx, missing_ok=True)
            return gone

        if await store.transact(body):
            await remove_if_empty(store, directory.rpartition("/")[0])

    async def _run(
        self, config: HotplugConfig, script: str, action: str, environment: Mapping[str, str]
    ) -> None:
        what = f"{self._name}: {printable(script)} {action}"
        command = (script, action, "type_if=vif")
        environment = {**environment, "ACTION": action, "vif": self._nic.link}
        try:
            await self._context.scripts.run(
                command, environment, config.seconds, lambda line: log.info("%s: %s", what, line)
            )
        except ScriptError as error:
            raise type(error)(f"{script} {action} {error}") from error
        log.info("%s is done", what)

    async def _environment(self, script: str) -> dict[str, str]:
        """What Linux's uevents of a vif and libxl (libxl_linux.c) give a script, but for the action and the link. The
        path is relative to the domain's own directory in the store, as both have it: xapi's script splits it at its
        slashes.
        """
        name, store = self._name, self._context.store
        gateway, kind = await asyncio.gather(
            *(read_backend(store, name, node) for node in ("gatewaydev", "type"))
        )
        emulated = {"INTERFACE": f"{name.link}-emu"} if kind == "vif_ioemu" else {}
        return {
            **self._context.platform.environment,
            "SUBSYSTEM": "xen-backend",
            "XENBUS_TYPE": name.kind,
            "XENBUS_PATH": f"{self._context.platform.prefix}backend/{name.kind}/{name.domid}/{name.number}",
            "XENBUS_BASE_PATH": "backend",
            "script": script,
            "netdev": gateway or "",
            **emulated,
        }

    def _warn(self, text: str) -> None:
        self._budget.warn(log, printable(f"{self._name}: {text}"))


def _may_run(config: HotplugConfig, script: str) -> bool:
    """Whether the script may be started; if not, the device's error said so when `online` was due."""
    try:
        check_script(script, config.directories)
    except ScriptError:
        return False
    return True
