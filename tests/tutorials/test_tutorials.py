# SPDX-License-Identifier: Apache-2.0
"""Runs every command of docs/tutorials, and compares what it prints with what its page shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = {page.stem: page for page in sorted((ROOT / "docs" / "tutorials").glob("*.md"))}
NEEDED = ("bash", "cc", "curl", "ip", "mount", "ping", "tshark", "unshare", "xenstore-ls")
MAX_LINES = 150
SECONDS = 300
"""A page takes some 15 s on a machine that has nothing else to do."""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
]

NAMESPACES = ("unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
"""The end of the script ends every process that it left, and the names of its network namespaces go with the mounts."""
ASIDE = 'mount -t tmpfs names /run/netns && ip link set lo up && exec bash -e "$0"'
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = "---- block {} ----"


@dataclass(frozen=True, slots=True)
class Block:
    """Commands (`sh`), what the commands before it print (`text`), or a file (`python`, its name in the first line)."""

    kind: str
    body: str

    @property
    def file(self) -> str:
        """The name of the file that a Python block is."""
        named = re.match(r"# (\w+\.py)\n", self.body)
        assert named, f"no name in the first line of: {self.body}"
        return named[1]


def blocks_of(page: Path) -> list[Block]:
    return [Block(kind, body) for kind, body in BLOCK.findall(page.read_text())]


def script_of(blocks: list[Block]) -> str:
    """The page's commands in their order, a mark before those of each block; a Python block is written to a file."""
    lines = ["trap 'exit 1' ERR"]
    for number, block in enumerate(blocks):
        if block.kind == "sh":
            lines += [f"echo '{MARK.format(number)}'", block.body]
        elif block.kind == "python":
            lines += [f"cat > ~/{block.file} <<'THE-END-OF-THE-FILE'", f"{block.body}THE-END-OF-THE-FILE"]
    return "\n".join(lines)


def run_script(script: str, home: Path) -> tuple[int, str]:
    """Its exit code and everything that it printed."""
    path = home / "script"
    path.write_text(script)
    Path("/run/netns").mkdir(exist_ok=True)
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "COLUMNS": "200",
        "LANG": "C.UTF-8",
    }
    with (home / "printed").open("w+") as printed:
        try:
            code = subprocess.run(
                [*NAMESPACES, "sh", "-c", ASIDE, str(path)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                timeout=SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            printed.write(f"killed after {SECONDS} s\n")
            code = -signal.SIGKILL
        printed.seek(0)
        return code, printed.read()


def pattern(line: str) -> re.Pattern[str]:
    """Widths of columns depend on their values, so any space stands for any number of them."""
    return re.compile(r"\s+".join(re.escape(word).replace("…", ".*") for word in line.split()))


def missing_line(shown: str, printed: str) -> str | None:
    """The first line of `shown` that `printed` does not have behind those before it."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        wanted = pattern(line)
        if not any(wanted.search(each) for each in lines):
            return line
    return None


def test_every_kind_of_reader_has_one() -> None:
    assert set(TUTORIALS) == {"hosts", "frontends", "teaching", "security"}


@pytest.mark.parametrize("name", TUTORIALS)
def test_what_a_page_is_made_of(name: str) -> None:
    """Every block is run or compared: there is no other kind; every file is used; a `text` follows commands."""
    page = TUTORIALS[name]
    blocks = blocks_of(page)
    assert page.read_text().count("```") == 2 * len(blocks)
    assert {block.kind for block in blocks} <= {"sh", "text", "python"}
    commands = "".join(block.body for block in blocks if block.kind == "sh")
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.kind == "text":
            assert before is not None
            assert before.kind == "sh", block.body
        if block.kind == "python":
            assert block.file in commands
    assert len(page.read_text().splitlines()) < MAX_LINES


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial(name: str, tmp_path: Path) -> None:
    blocks = blocks_of(TUTORIALS[name])
    code, printed = run_script(script_of(blocks), tmp_path)
    assert code == 0, printed
    assert "Traceback" not in printed
    for number, block in enumerate(blocks):
        if block.kind == "text":
            section = printed.partition(MARK.format(number - 1))[2].partition("\n---- block ")[0]
            missing = missing_line(block.body, section)
            assert missing is None, f"not printed: {missing}\n{section}"
