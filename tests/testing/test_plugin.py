# SPDX-License-Identifier: Apache-2.0
"""The fixtures in a repository of someone else: docs/testing.md's examples, run by a pytest of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from netback.platforms.emulated import CFLAGS

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "testing.md"
EXAMPLES = dict(re.findall(r"```python\n# (test_\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL))


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=100, check=False)


def test_every_example_of_the_document_is_run() -> None:
    assert len(EXAMPLES) == DOCUMENT.read_text().count("```python\n") == 4


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    """In a directory that has nothing of netback's, as a user's repository."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / name).write_text(EXAMPLES[name])
    source = ROOT / "examples" / "c" / "guest.c"
    compiled: list[str | Path] = ["cc", "-std=c11", CFLAGS, "-o", tmp_path / "guest", source]
    subprocess.run(compiled, check=True)
    done = run_pytest(tmp_path, name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_fixtures_are_listed(tmp_path: Path) -> None:
    listed = run_pytest(tmp_path, "--fixtures").stdout
    for name in ("xen", "xen_backend", "xen_guest", "xen_vif", "xen_namespace"):
        assert re.search(rf"^{name} -- ", listed, re.MULTILINE), listed


def test_other_tests_do_not_load_netback(tmp_path: Path) -> None:
    loaded = "[name for name in sys.modules if name.startswith('netback.')]"
    (tmp_path / "test_other.py").write_text(
        f"import sys\ndef test(): assert {loaded} == ['netback.pytest_plugin']\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout
