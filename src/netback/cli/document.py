# SPDX-License-Identifier: Apache-2.0
"""Makes docs/reference.md from the tables in the code: `python -m netback.cli.document > docs/reference.md`."""

from collections.abc import Iterable, Iterator, Sequence

import click

from netback.cli.app import netback
from netback.control.document import describe_fields
from netback.control.metrics import families
from netback.daemon.config import NO_KEYS, Config, DeviceRule
from netback.errors import EXIT_MEANINGS
from netback.net.filters import KINDS as FILTERS
from netback.net.options import Option, Options
from netback.net.spec import KINDS as NETWORKS
from netback.vif import terms
from netback.vif.features import LIVE


def render_document() -> str:
    """The page."""
    parts = (_head, _commands, _exit_codes, _configuration, _networks, _filters, _features, _metrics)
    return "\n".join(line for part in parts for line in part()) + "\n"


def _head() -> Iterator[str]:
    yield "<!-- SPDX-License-Identifier: Apache-2.0 -->"
    yield "# Reference"
    yield ""
    yield "Made from the tables in the code by `make docs` (`python -m netback.cli.document`). [running.md](running.md)"
    yield "says how the parts work together, [control.md](control.md) has the control socket,"
    yield "[statistics.md](statistics.md) every counter. TX is what the guest sends."


def _table(title: str, intro: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"## {title}", "", intro, "")
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"


def _commands() -> Iterator[str]:
    context = click.Context(netback, info_name="netback")

    def rows(group: click.Group, words: str) -> Iterator[tuple[str, str]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from rows(command, f"{words} {name}")
            else:
                yield f"`{words} {name}`", (command.help or "").split("\n\n")[0]

    yield from _table(
        "Commands",
        "Each has `--help`, and a manual page (`make man`).",
        ("command", "what it does"),
        rows(netback, "netback"),
    )


def _exit_codes() -> Iterator[str]:
    yield from _table(
        "Exit codes",
        "`lab up --exec` has its command's. Other commands end by the signal.",
        ("code", "meaning"),
        ((str(int(code)), meaning) for code, meaning in EXIT_MEANINGS.items()),
    )


def _configuration() -> Iterator[str]:
    """The key that holds the rules is the second table's title."""
    for title, intro, struct in (
        (
            "Configuration",
            "Keys of the configuration file and its drop-ins ([running.md](running.md), Configuration).",
            Config,
        ),
        (
            "Rules",
            "Keys of a `[[device]]`. It applies to the devices that match all of its keys.",
            DeviceRule,
        ),
    ):
        rows = (
            (f"`{name}`", kind.removesuffix(" or null"), "" if default == "`null`" else default, meaning)
            for name, kind, default, meaning in describe_fields(struct)
            if name not in NO_KEYS | {"device"}
        )
        yield from _table(title, intro, ("key", "type", "default", "meaning"), rows)


def _option(name: str, option: Option) -> str:
    """A flag has no value."""
    return f"`{name}=…`: {option.value}" if option.value else f"`{name}`"


def _options(options: Options) -> str:
    return "; ".join(_option(name, option) for name, option in options.items())


def _networks() -> Iterator[str]:
    yield from _table(
        "Networks",
        "What `--net` and `net =` take: `KIND[:NAME][,OPTION[=VALUE]]...` ([networks.md](networks.md)).",
        ("as in", "options"),
        ((f"`{kind.example}`", _options(kind.options)) for kind in NETWORKS.values()),
    )


def _filters() -> Iterator[str]:
    yield from _table(
        "Filters",
        "What `--filter` and `filters =` take: `KIND[,OPTION[=VALUE]]...` ([filters.md](filters.md)).",
        ("kind", "options"),
        ((f"`{name}`", _options(kind.options)) for name, kind in FILTERS.items()),
    )


def _features() -> Iterator[str]:
    rows = []
    for row in terms.ROWS:
        key = "" if row.offered is None else f"`{row.offered}`"
        when = "refuses it" if row.inverted else "any time" if row.asked in LIVE else "at Connected"
        rows.append((row.feature, row.means, key, f"`{row.asked}`", when, ", ".join(row.needs)))
    yield from _table(
        "Features",
        "What a frontend can agree on with netback. The backend's key is written before InitWait; netif.h has none\n"
        "for some. `netback show` says of a device what was offered, asked for and agreed, and why not.",
        ("feature", "what it gives", "backend's key", "frontend's key", "read", "needs"),
        rows,
    )


def _metrics() -> Iterator[str]:
    rows = []
    for metric in families((), (), ()):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels: Sequence[str] = getattr(metric, "_labelnames", ())
        rows.append(
            (f"`{name}`", metric.type, ", ".join(f"`{label}`" for label in labels), metric.documentation)
        )
    yield from _table(
        "Metrics",
        "What `netback metrics` serves to Prometheus. Directions are the link's: what the guest sends is received.",
        ("metric", "type", "labels", "meaning"),
        rows,
    )


if __name__ == "__main__":
    print(render_document(), end="")
