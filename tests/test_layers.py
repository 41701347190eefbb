# SPDX-License-Identifier: Apache-2.0
"""The house's floors: an import only goes down, and the lower floors know no clock, socket or thread."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

FLOORS = (
    (0, "netback.__version__"),
    (0, "netback.errors"),
    (0, "netback.abi"),
    (1, "netback.xenstore"),
    (1, "netback.xenbus.states"),
    (1, "netback.vif.features"),
    (1, "netback.dataplane"),
    (2, "netback.directory"),
    (2, "netback.process"),
    (2, "netback.xenstore.aio"),
    (2, "netback.platforms.base"),
    (2, "netback.net.base"),
    (2, "netback.observe"),
    (3, "netback.platforms.emulated"),
    (3, "netback.platforms.xen"),
    (3, "netback.net"),
    (4, "netback.vif"),
    (4, "netback.xenbus"),
    (5, "netback.daemon"),
    (5, "netback.control"),
    (5, "netback.frontend"),
    (5, "netback.demo"),
    (5, "netback.lab"),
    (5, "netback.__main__"),
    (5, "netback.cli"),
)
IMPURE = {"os", "socket", "select", "time", "threading", "asyncio", "random", "subprocess"}
PACKAGES = {"netback", "netback.platforms"}
"""Namespaces that hold nothing: on no floor."""


def floor(module: str) -> int:
    """The floor of a module: that of the longest name in the table that leads to it."""
    found = [
        (len(name), number) for number, name in FLOORS if module == name or module.startswith(name + ".")
    ]
    assert found, f"{module} is on no floor: name it in FLOORS"
    return max(found)[1]


def modules() -> list[tuple[str, Path]]:
    """Every module of the package, native ones included."""
    found = []
    for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyx")]):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in PACKAGES:
            found.append((name, path))
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules that one imports, wherever in it."""
    text = path.read_text()
    if path.suffix == ".pyx":
        for match in re.finditer(r"^(?:from (\S+) c?import|c?import (\S+))", text, re.MULTILINE):
            yield match.group(1) or match.group(2)
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            if source in PACKAGES or not node.module:
                yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_only_go_down(name: str, path: Path) -> None:
    """A module imports from its own floor or from those below."""
    above = [
        other
        for other in imported(name, path)
        if other.startswith("netback.") and other not in PACKAGES and floor(other) > floor(name)
    ]
    assert not above, f"{name} (floor {floor(name)}) imports from above: {above}"


@pytest.mark.parametrize(
    ("name", "path"),
    [(n, p) for n, p in modules() if floor(n) < 2 and not n.startswith("netback.dataplane")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_lower_floors_do_no_io(name: str, path: Path) -> None:
    """Time, randomness and bytes are arguments there."""
    impure = {other.partition(".")[0] for other in imported(name, path)} & IMPURE
    assert not impure, f"{name} imports {sorted(impure)}"
