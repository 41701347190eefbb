# SPDX-License-Identifier: Apache-2.0
"""The commands, each a few lines: what it does is imported when it runs, so that `--help` is quick."""

import asyncio
import os
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from netback import __version__
from netback.cli import lab
from netback.cli.place import Place, PlatformName, default_directory
from netback.errors import ConfigError, NetbackError, PlatformError

app = typer.Typer(
    name="netback",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class TypeName(StrEnum):
    """Device types: where in the store a device is, and where a frame begins in its page."""

    VIF = "vif"
    QNIC = "qnic"


app.add_typer(lab.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"netback {__version__}")
        raise typer.Exit


@app.callback()
def netback(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """A Xen network backend in userspace: serves guests' netfronts on a real or an emulated Xen."""


Directory = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Directory of the emulated Xen, or of netback's runtime files on a real one."
        "  [default: where XENSTORED_PATH is, or netback's own]",
    ),
]
Platform = Annotated[
    PlatformName | None,
    typer.Option(
        "--platform", help="Which Xen.  [default: the one this machine is in, else an emulated one]"
    ),
]
Domain = Annotated[str, typer.Argument(metavar="DOMAIN", help="The guest: its domid or its name.")]
Type = Annotated[TypeName, typer.Option("--type", help="Device type.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
SpecHelp = "Network: tap[:NAME], packet:LINK or null."


@app.command()
def emulate(
    directory: Directory = None,
    print_env: Annotated[
        bool,
        typer.Option("--print-env", help="Print what points the xenstore tools here, for eval; then exit."),
    ] = False,
) -> None:
    """Run an emulated Xen: a xenstore and a hypervisor for processes that are domains. Stays in the foreground."""
    from netback.platforms import emulated

    place = directory or default_directory()
    if print_env:
        typer.echo(emulated.print_env(place))
        return
    asyncio.run(emulated.emulate(place, lambda: typer.echo(f"emulated Xen in {place}", err=True)))


@app.command()
def run(
    platform: Platform = None,
    directory: Directory = None,
    net: Annotated[
        str | None, typer.Option(help=f"{SpecHelp} For devices that name none.  [default: tap]")
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option(help="Trace points to show: a name or a glob such as 'xen_netdev_*'.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker threads.  [default: one for each core]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file; options win over it.  [default: /etc/netback/netback.toml]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the configuration, and do nothing else.")
    ] = False,
) -> None:
    """Serve the guests' network devices until told to end, which no guest notices: the next run goes on from there."""
    from netback.cli.serve import serve
    from netback.daemon.config import Config, load_config

    def load() -> Config:
        return load_config(config).overruled(net=net, trace=tuple(trace or ()), workers=workers)

    if check:
        load()
    else:
        asyncio.run(serve(Place.choose(platform, directory), load))


@app.command()
def doctor(directory: Directory = None, json: Json = False) -> None:
    """Look for what a backend needs of a Xen domain, and say what to do. Changes nothing; 1 where something fails."""
    from netback.cli.checkup import show_checkup

    if not show_checkup(Place.choose(PlatformName.XEN, directory), as_json=json):
        raise typer.Exit(1)


@app.command()
def unit(
    modprobe: Annotated[
        bool,
        typer.Option(
            "--modprobe", help="Print what keeps the kernel's backend out instead: for /etc/modprobe.d/."
        ),
    ] = False,
) -> None:
    """Print a systemd unit that runs this netback: for /etc/systemd/system/netback.service."""
    from netback.daemon.systemd import unit as service

    if modprobe:
        typer.echo(service.KEEP_KERNEL_OUT.read_text(), nl=False)
        return
    own = Path(sys.argv[0]).absolute()
    program = str(own) if own.name == "netback" else shutil.which("netback") or "/usr/bin/netback"
    typer.echo(service.unit(program), nl=False)
    if service.is_hidden(program):
        typer.echo(f"netback: the unit may not see {program}: install netback outside of homes", err=True)


@app.command()
def attach(
    domain: Domain,
    net: Annotated[str, typer.Option(help=SpecHelp)],
    mac: Annotated[str | None, typer.Option(help="MAC address.  [default: random, of Xen's range]")] = None,
    kind: Type = TypeName.VIF,
    index: Annotated[int, typer.Option(min=-1, help="Device index; -1 chooses one.")] = -1,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Give a guest a network device. A backend that runs connects it; one started later does so, too."""
    from netback.cli.devices import attach_device

    place = Place.choose(platform, directory)
    name = asyncio.run(attach_device(place, domain, net, kind.value, mac, index))
    typer.echo(name)


@app.command()
def detach(
    domain: Domain,
    kind: Annotated[TypeName | None, typer.Option("--type", help="Device type.")] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Device index; needed where there are several.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for the guest before it is forced.")
    ] = 10.0,
    platform: Platform = None,
    directory: Directory = None,
) -> None:
    """Take a network device from a guest: the guest is asked first."""
    from netback.cli.devices import detach_device

    place = Place.choose(platform, directory)
    name, answered = asyncio.run(detach_device(place, domain, kind.value if kind else None, index, seconds))
    typer.echo(name if answered else f"{name} (forced: the guest did not answer)")


@app.command(name="list")
def list_(platform: Platform = None, directory: Directory = None, json: Json = False) -> None:
    """Show the network devices, their states and what both ends agreed on."""
    from netback.cli.devices import read_devices, show_devices

    show_devices(asyncio.run(read_devices(Place.choose(platform, directory))), as_json=json)


@app.command()
def guest(
    net: Annotated[str, typer.Option(help=f"{SpecHelp} What the guest's vif is joined to.")],
    platform: Platform = None,
    directory: Directory = None,
    domid: Annotated[
        int | None, typer.Option(min=1, help="Domid, on an emulated Xen.  [default: the next free one]")
    ] = None,
    name: Annotated[str, typer.Option(help="The domain's name, on an emulated Xen.")] = "",
    index: Annotated[int, typer.Option(min=0, help="Index of its network device.")] = 0,
) -> None:
    """Be a guest, with netback's own netfront: a new one of an emulated Xen, or the real domain that this is.

    It waits for its device to be attached. On real Xen, unload xen-netfront first.
    """
    from netback.frontend import run_guest

    asyncio.run(
        run_guest(
            Place.choose(platform, directory).open_domain(domid=domid, name=name),
            net,
            name=name,
            index=index,
            on_joined=lambda number: typer.echo(f"domain {number}"),
            on_state=lambda side, state: typer.echo(f"{side} {state.title}", err=True),
        )
    )


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def demo(context: typer.Context) -> None:
    """Show it all: two TCP/IP stacks, a guest's and a host's, over emulated Xen. `netback demo --help` tells more."""
    from netback.demo.command import demo as show

    shown = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    shown.command()(show)
    shown(context.args, prog_name="netback demo")


def main() -> None:
    """Run a command. What goes wrong is one line, and an exit code as docs/running.md tells."""
    try:
        app()
    except (NetbackError, OSError) as error:
        typer.echo(f"netback: {error}", err=True)
        sys.exit(exit_code(error))


def exit_code(error: Exception) -> int:
    """2 for what the user asked, 75 (EX_TEMPFAIL) for a store that is not there, or no more; 1 for everything else."""
    if isinstance(error, ConfigError):
        return 2
    return os.EX_TEMPFAIL if isinstance(error, PlatformError) and error.errno == "EIO" else 1
