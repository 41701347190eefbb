# SPDX-License-Identifier: Apache-2.0
"""Failing inputs as files: the target, the seed, the failure, and the case itself as a Python expression.

Reads a case back without executing the file.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS, Target

FAILURES = Path(__file__).parent / "failures"


def save(target: Target, seed: int, case: Any, trouble: str, directory: Path = FAILURES) -> Path:
    """Keep a case. The same target and seed give the same file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{target.name}-{seed}.txt"
    lines = [f"# {line}" for line in trouble.strip().splitlines()]
    path.write_text("\n".join([f"# target: {target.name}", f"# seed: {seed}", *lines, repr(case), ""]))
    return path


def load(path: Path) -> tuple[Target, Any]:
    """The target and its case."""
    lines = path.read_text().splitlines()
    target = TARGETS[lines[0].removeprefix("# target: ")]
    return target, parse(lines[-1], target)


def parse(text: str, target: Target) -> Any:
    """A case from its repr: literals, and calls of the target's own classes."""
    return _value(ast.parse(text, mode="eval").body, {word.__name__: word for word in target.words})


def _value(node: ast.expr, words: dict[str, type]) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_value(part, words) for part in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        named = {str(keyword.arg): _value(keyword.value, words) for keyword in node.keywords}
        return words[node.func.id](*(_value(part, words) for part in node.args), **named)
    return ast.literal_eval(node)
