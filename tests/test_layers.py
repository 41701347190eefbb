# SPDX-License-Identifier: Apache-2.0
"""The floors of ARCHITECTURE.md: an import only goes down and in no circle; the lower floors do no I/O."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    (1, "netback.vif.rate"),
    (1, "netback.vif.terms"),
    (1, "netback.vif.control_messages"),
    (1, "netback.dataplane"),
    (1, "netback.conform.answers"),
    (1, "netback.conform.backend_rules"),
    (1, "netback.conform.chains"),
    (1, "netback.conform.frames"),
    (1, "netback.conform.observation"),
    (1, "netback.conform.profiles"),
    (1, "netback.conform.report"),
    (1, "netback.conform.rule"),
    (1, "netback.conform.rules"),
    (1, "netback.conform.view"),
    (2, "netback.directory"),
    (2, "netback.output"),
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
    (5, "netback.conform"),
    (5, "netback.frontend"),
    (5, "netback.demo"),
    (5, "netback.lab"),
    (5, "netback.__main__"),
    (5, "netback.cli"),
    (5, "netback.testing"),
    (5, "netback.web"),
    (5, "netback.pytest_plugin"),
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
    """Every module of the package with its file, native ones included. A .pyx and its .pxd are one module."""
    found = []
    for path in sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyx"), *SOURCE.rglob("*.pxd")]):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in PACKAGES:
            found.append((name, path))
    return found


def imported(name: str, path: Path) -> Iterator[str]:
    """Modules that a file imports or cimports, at its top, in a function or for type checking."""
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):
        for match in re.finditer(r"^\s*(?:from (\S+) c?import|c?import (\S+))", text, re.MULTILINE):
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


def graph() -> dict[str, set[str]]:
    """What each module imports of the package. `from package import module` is an import of the module alone.

    A .pxd is a header, a node of its own: a cimport of a structure or an inline function depends on the header, a
    cimport of any other function or of a class is also an import of the module.
    """
    known = {name for name, _ in modules()}
    edges: dict[str, set[str]] = {}
    for name, path in modules():
        if path.suffix == ".py":
            found = {
                other for node in ast.walk(ast.parse(path.read_text())) for other in python_edges(node, known)
            }
            edges.setdefault(name, set()).update((found & known) - {name})
        else:
            here = name + ".pxd" * (path.suffix == ".pxd")
            edges.setdefault(here, set()).update(set(native_edges(path.read_text(), known)) - {name})
    return edges


def python_edges(node: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules that a statement imports. The package has no relative imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert not node.level
        assert node.module
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in known else node.module


def native_edges(text: str, known: set[str]) -> Iterator[str]:
    """The headers and modules that a .pyx or .pxd imports and cimports."""
    for source, names in re.findall(r"^\s*from (\S+) import (.*)", text, re.MULTILINE):
        yield from (
            name for name in (source, *(f"{source}.{leaf}" for leaf in names.split(", "))) if name in known
        )
    for source, names in re.findall(r"^\s*from (\S+) cimport (\([^)]*\)|.*)", text, re.MULTILINE):
        header = SOURCE.joinpath(*source.split(".")).with_suffix(".pxd")
        if source not in known or not header.exists():
            continue
        yield f"{source}.pxd"
        if any(needs_the_module(header.read_text(), name) for name in re.findall(r"\w+", names)):
            yield source


def needs_the_module(header: str, name: str) -> bool:
    """Whether a header declares `name` as a class or as a function that the module defines."""
    function = rf"^cp?def (?!inline |extern |struct |enum |union |packed |class )[^=\n]*\b{name}\("
    return re.search(rf"{function}|^cdef class {name}\b", header, re.MULTILINE) is not None


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of a circle in the order of their imports, first and last the same; none where there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_there_is_no_circle_of_imports() -> None:
    """Not even one that a function's own import or TYPE_CHECKING hides."""
    found = circle(graph())
    assert not found, "a circle of imports: " + " -> ".join(found)


def test_a_circle_is_named() -> None:
    """The check itself."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) in (
        ["a", "b", "c", "a"],
        ["b", "c", "a", "b"],
        ["c", "a", "b", "c"],
    )


@pytest.mark.parametrize(
    ("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else value.suffix
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
