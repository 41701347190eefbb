# SPDX-License-Identifier: Apache-2.0
"""What a backend needs from a Xen domain, as a table of checks. Each check returns a finding and advice.

The checks change nothing. What also concerns each device is a rule of daemon/rules.py, as `explain` applies it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from netback.control import Client, ControlError, NoBackend
from netback.control.schema import DeviceStatus, Explanation
from netback.daemon.config import DEFAULT, load_config
from netback.daemon.machine import Machine
from netback.daemon.rules import judge_host
from netback.errors import ConfigError, NetbackError
from netback.net.tap import Flag
from netback.platforms.xen.devices import xen_version

_CAP_NET_ADMIN = 12
_DESCRIPTORS = 4096
"""File descriptors for 800 vifs: each takes about five."""


class Verdict(StrEnum):
    """The result of one check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's finding and advice; the advice is empty if there is nothing to do."""

    verdict: Verdict
    found: str
    advice: str = ""


ok = partial(Finding, Verdict.OK)
warn = partial(Finding, Verdict.WARN)
fail = partial(Finding, Verdict.FAIL)
_VERDICTS = {"error": Verdict.FAIL, "warning": Verdict.WARN, "note": Verdict.OK}
"""Of a rule's severity."""


def xen(machine: Machine) -> Finding:
    """Whether this is a Xen domain."""
    kind = machine.read("sys/hypervisor/type")
    if kind != "xen":
        return fail(
            f"hypervisor {kind}" if kind else "no hypervisor", "boot Xen; `netback emulate` needs none"
        )
    return ok(f"Xen {xen_version(machine.root)}".rstrip())


def device(name: str, module: str, machine: Machine) -> Finding:
    """Whether a device exists and can be opened."""
    path = machine.path(name)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return fail(f"there is no {name}", f"modprobe {module}")
    except OSError as error:
        return fail(f"{name}: {error.strerror}", "be root")
    return ok(name)


def own_grants(machine: Machine) -> Finding:
    """Whether the hypervisor copies between two grants (docs/decisions.md). This affects speed only."""
    found = device("/dev/xen/gntalloc", "xen-gntalloc", machine)
    if found.verdict is Verdict.OK:
        return found
    return warn(found.found, f"{found.advice}: it makes copies to guests cheaper")


def store(machine: Machine) -> Finding:
    """Whether xenstored answers, and this domain's domid."""
    try:
        domid = machine.own_domid()
    except (NetbackError, OSError) as error:
        return fail(str(error), "start xenstored: systemctl start xen, or xenstored.service")
    return ok(f"this is domain {domid}")


def ruled(rules: tuple[str, ...], fine: str, machine: Machine) -> Finding:
    """What the first of these rules finds wrong with the host (daemon/rules.py), or `fine`."""
    found = judge_host(machine.host(served=True))
    for rule in rules:
        if (finding := found.get(rule)) is not None:
            return Finding(_VERDICTS[finding.severity], finding.finding.rstrip("."), finding.fix.rstrip("."))
    return ok(fine)


claims = partial(ruled, ("kernel-backend", "kernel-backend-loaded"), "no other backend claims vifs")
"""Which other backend claims this domain's vifs."""
emulator = partial(ruled, ("qemu-claims",), "no QEMU claims qnic devices")
"""QEMU as dom0's backend takes over qnic devices that it sees in state Initialising."""


def tun(machine: Machine) -> Finding:
    """Whether taps can be created with the virtio header that carries offloads."""
    opened = device("/dev/net/tun", "tun", machine)
    if opened.verdict is not Verdict.OK:
        return opened
    fd = os.open(machine.path("/dev/net/tun"), os.O_RDWR | os.O_CLOEXEC)
    try:
        features = machine.features(fd)
    except OSError as error:
        return fail(f"/dev/net/tun: {error.strerror}", "modprobe tun")
    finally:
        os.close(fd)
    if not features & Flag.VNET_HDR:
        return fail("taps have no virtio_net_hdr", "use a kernel with offloads in tun")
    return ok("/dev/net/tun, with offloads")


def vhost(machine: Machine) -> Finding:
    """Whether the kernel can move a tap's streams."""
    found = device("/dev/vhost-net", "vhost_net", machine)
    if found.verdict is Verdict.OK:
        return ok("/dev/vhost-net, for the streams of taps")
    return ok(f"{found.found}; so a tap's frames all go by system calls")


def rights(machine: Machine) -> Finding:
    """CAP_NET_ADMIN, required to create a tap."""
    for line in machine.read("proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            if int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
                return ok("CAP_NET_ADMIN")
            return fail("CAP_NET_ADMIN is missing", "run netback as root, or grant it CAP_NET_ADMIN")
    return warn("/proc/self/status does not say", "mount /proc")


def descriptors(machine: Machine) -> Finding:
    """The limit on open files."""
    limit = machine.limit("Max open files")
    if limit is not None and limit < _DESCRIPTORS:
        return warn(f"{limit} open files at most", f"LimitNOFILE={_DESCRIPTORS}, or ulimit -Hn: five a vif")
    return ok(f"{limit} open files" if limit else "no limit of open files")


def locked_memory(machine: Machine) -> Finding:
    """RLIMIT_MEMLOCK has no effect: guests' rings are mapped, not locked. The check rules it out as a cause."""
    limit = machine.limit("Max locked memory")
    return ok(f"{limit} bytes at most; netback locks none" if limit is not None else "no limit")


def _devices(machine: Machine) -> list[DeviceStatus]:
    """What the running backend serves. ControlError: unknown; NoBackend: none runs."""
    with Client(machine.runtime) as client:
        return client.devices()


def running(machine: Machine) -> Finding:
    """Whether a netback serves this domain, and which of its devices have errors."""
    try:
        devices = _devices(machine)
    except NoBackend:
        return warn(f"none answers in {machine.runtime}", "systemctl start netback, or netback run")
    except ControlError as error:
        return fail(str(error), "systemctl restart netback: guests do not notice")
    faulty = [status for status in devices if status.error]
    if faulty:
        first = f"{len(faulty)} of {len(devices)} devices with an error, first {faulty[0].device}: {faulty[0].error}"
        return warn(first, "netback list shows each")
    return ok(f"one runs and serves {len(devices)} devices")


def quotas(machine: Machine) -> Finding:
    """Whether a driver domain's quotas suffice for its devices; domain 0 has no quotas."""
    try:
        devices = _devices(machine)
    except ControlError:
        return warn("not known, since no backend answers", "see netback")
    refused = [status for status in devices if status.error and "quota" in status.error]
    if refused:
        return warn(
            f"{len(refused)} of {len(devices)} devices, first {refused[0].device}: {refused[0].error}",
            "in domain 0: xenstored --entry-nb (nodes), --watch-nb, --transaction; or oxenstored.conf's quota-*",
        )
    return ok("the devices have all nodes, watches and transactions they need")


def offloads(machine: Machine) -> Finding:
    """Links whose GRO or LRO produces frames that AF_PACKET cannot describe. Taps are not affected."""
    return ok(
        "where GTP-U or GUE tunnels arrive by packet:LINK: ethtool -K LINK gro off lro off"
        " (docs/decisions.md, Offloads of taps and packet sockets)"
    )


def config(machine: Machine) -> Finding:
    """The configuration file and its drop-ins."""
    try:
        found = load_config(machine.path(str(DEFAULT)), optional=True)
    except ConfigError as error:
        return fail(str(error), "mend it; netback config check reads it again")
    if not found.files:
        return ok(f"no {DEFAULT}: the defaults apply")
    return ok(f"{len(found.files)} files in {DEFAULT.parent}, with {len(found.device)} rules")


def bridges(machine: Machine) -> Finding:
    """The bridges available to xl's vif-bridge."""
    links = machine.children("sys/class/net")
    found = [name for name in links if machine.path(f"sys/class/net/{name}/bridge").is_dir()]
    if not found:
        return warn("no bridge", "vif-bridge needs one: ip link add xenbr0 type bridge")
    return ok(", ".join(found))


def scripts(machine: Machine) -> Finding:
    """The hotplug script that xl, or xl devd, runs for each vif."""
    path = machine.path("etc/xen/scripts/vif-bridge")
    if not path.exists():
        return warn("there is no /etc/xen/scripts/vif-bridge", "xl needs it: install xen-utils-common")
    if not os.access(path, os.X_OK):
        return fail(
            "/etc/xen/scripts/vif-bridge is not executable",
            "chmod +x it; without that xl waits until it times out",
        )
    return ok("/etc/xen/scripts/vif-bridge")


def _runs_scripts(machine: Machine) -> bool:
    """Whether netback runs the hotplug scripts: the running backend says it, else the configuration file."""
    with suppress(ControlError, ConfigError), Client(machine.runtime) as client:
        return client.info().hotplug == "netback"
    with suppress(ConfigError):
        return load_config(machine.path(str(DEFAULT)), optional=True).hotplug == "netback"
    return False


def toolstack(machine: Machine) -> Finding:
    """What runs the hotplug scripts, and whether something else does so, too."""
    dom0 = False
    with suppress(NetbackError, OSError):
        dom0 = machine.own_domid() == 0
    devd = machine.host(served=True).devd
    if _runs_scripts(machine):
        runs = 'netback runs the scripts (hotplug = "netback")'
        if devd is not None:
            return fail(
                f"{runs}, and so does xl devd (process {devd})",
                'stop one: systemctl disable --now xendriverdomain, or hotplug = "toolstack"',
            )
        if dom0 and machine.path("usr/sbin/xl").exists():
            return warn(
                f"{runs}, and so does xl for the guests that it starts", 'with xl: hotplug = "toolstack"'
            )
        return ok(runs)
    if dom0:
        return ok("domain 0: xl runs the scripts")
    if devd is not None:
        return ok(f"xl devd runs (process {devd})")
    return warn(
        "xl devd does not run",
        'a driver domain needs it for scripts: systemctl start xendriverdomain, or hotplug = "netback"',
    )


CHECKS: tuple[tuple[str, Callable[[Machine], Finding]], ...] = (
    ("xen", xen),
    ("evtchn", partial(device, "/dev/xen/evtchn", "xen-evtchn")),
    ("gntdev", partial(device, "/dev/xen/gntdev", "xen-gntdev")),
    ("gntalloc", own_grants),
    ("xenbus", partial(device, "/dev/xen/xenbus", "xenfs")),
    ("store", store),
    ("vifs", claims),
    ("qnics", emulator),
    ("tun", tun),
    ("vhost-net", vhost),
    ("rights", rights),
    ("nofile", descriptors),
    ("memlock", locked_memory),
    ("config", config),
    ("netback", running),
    ("quotas", quotas),
    ("offloads", offloads),
    ("bridges", bridges),
    ("scripts", scripts),
    ("toolstack", toolstack),
)
"""The checks, in the order in which to fix their findings."""


def devices(machine: Machine) -> dict[str, Finding]:
    """What `explain` finds of each device that the running backend has, as far as one reading of its counters shows it;
    none without a backend, and none of a qnic that netback leaves alone, since a QEMU made it for itself.
    """
    try:
        with Client(machine.runtime) as client:
            names = [
                one.device for one in client.devices() if one.counters is not None and not _is_of_qemu(one)
            ]
            return {name: _count(client.explain(name, seconds=0)) for name in names}
    except ControlError:
        return {}


def _is_of_qemu(status: DeviceStatus) -> bool:
    """Whether it is one that the device itself has found to be of QEMU: without a MAC address, and no error."""
    return status.type == "qnic" and status.mac is None and status.error is None


def _count(explanation: Explanation) -> Finding:
    findings = explanation.findings
    if not findings:
        return ok(f"none of {explanation.rules} rules finds anything wrong")
    words = "1 finding" if len(findings) == 1 else f"{len(findings)} findings, first"
    return warn(f"{words}: {findings[0].finding}", f"netback explain {explanation.device}")


def examine(machine: Machine) -> dict[str, Finding]:
    """Every check's finding by the check's name, then a line for each device by the device's."""
    return {name: look(machine) for name, look in CHECKS} | devices(machine)
