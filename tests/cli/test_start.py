# SPDX-License-Identifier: Apache-2.0
"""What a command imports before it does its work: `list` is called often, so nothing that it does not need."""

import subprocess
import sys

import pytest

HEAVY = {
    "asyncio",
    "rich",
    "pyroute2",
    "netback.xenstore",
    "netback.platforms.base",
    "netback.daemon",
    "netback.lab",
    "shutil",
}
"""Each costs a tenth of a second or a good part of it."""
SHOW = "import sys; from netback.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"


@pytest.mark.parametrize(
    "words",
    [("list", "-o", "nonsense"), ("stats", "--nonsense"), ("set", "vif1.0", "--dir", "/nonexistent")],
)
def test_heavy_modules_are_imported_where_they_are_used(words: tuple[str, ...]) -> None:
    ended = subprocess.run([sys.executable, "-c", SHOW, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    loaded = {*ended.stderr.splitlines()[-1].split()}
    assert f"netback.cli.{words[0]}" in loaded
    assert not loaded & HEAVY
