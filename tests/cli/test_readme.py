# SPDX-License-Identifier: Apache-2.0
"""Runs the example of README's section "By hand"."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
NEEDED = ("ip", "ping", "xenstore-ls", "unshare", "bash")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
]

ASIDE = 'mount -t tmpfs names /run/netns && exec bash -e "$0"'
"""The network namespaces' names exist in this test's mount namespace and disappear with it."""
END = "kill $(jobs -p); wait; ip netns del host; ip netns del guest\n"


def test_by_hand(tmp_path: Path) -> None:
    text = README.read_text().partition("\n## By hand\n")[2]
    commands = text.partition("```\n")[2].partition("```\n")[0].splitlines()
    assert commands.pop(0).startswith(". .venv/bin/activate")
    script = tmp_path / "by-hand"
    script.write_text("\n".join(["trap 'exit 1' ERR", *commands, END]))
    Path("/run/netns").mkdir(exist_ok=True)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "COLUMNS": "200",
    }
    with (tmp_path / "out").open("w+") as out:
        seen = subprocess.run(
            ["unshare", "--mount", "sh", "-c", ASIDE, str(script)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
            timeout=60,
        )
        out.seek(0)
        output = out.read()
    assert seen.returncode == 0, output
    assert "Traceback" not in output
    assert re.search(r"vif1\.0 +guest-1 +(InitWait|Connected)", output)
    assert " 0% packet loss" in output
    assert output.count("vif1.0") > 2
