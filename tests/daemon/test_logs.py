# SPDX-License-Identifier: Apache-2.0
"""Log lines: the journal's format if the journal reads them, a format with times otherwise."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netback.daemon.systemd.logs import JournalFormatter, LineFormatter, is_journal

LEVELS = [
    (logging.DEBUG, 7),
    (logging.INFO, 6),
    (logging.WARNING, 4),
    (logging.ERROR, 3),
    (logging.CRITICAL, 2),
]
SAY = "import logging; from netback.daemon.systemd.logs import set_up_log; set_up_log(); logging.warning('a\\nb')"


@pytest.mark.parametrize(("level", "priority"), LEVELS)
def test_every_line_has_its_priority(level: int, priority: int) -> None:
    record = logging.LogRecord("asyncio", level, "", 0, "one\ntwo", (), None)
    assert JournalFormatter("%(message)s").format(record) == f"<{priority}>one\n<{priority}>two"


def test_the_journal_is_the_stream_that_it_says(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        found = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(stream.fileno(), environment)
        assert not is_journal(other.fileno(), environment)
        assert not is_journal(stream.fileno(), {})


@pytest.mark.parametrize("journal", [True, False])
def test_the_form_goes_by_what_stderr_is(tmp_path: Path, journal: bool) -> None:
    with (tmp_path / "stream").open("w+") as stream:
        found = os.fstat(stream.fileno())
        stream_name = f"{found.st_dev}:{found.st_ino}" if journal else "1:1"
        subprocess.run(
            [sys.executable, "-c", SAY],
            check=True,
            stderr=stream,
            env=os.environ | {"JOURNAL_STREAM": stream_name},
        )
        stream.seek(0)
        written = stream.read()
    assert (written == "<4>root: a\n<4>b\n") is journal
    assert journal or written.endswith("WARNING root: a\nb\n")


@pytest.mark.parametrize("formatter", [JournalFormatter, LineFormatter])
def test_a_guest_cannot_write_lines_of_its_own(formatter: type[logging.Formatter]) -> None:
    """A message cannot start a second line or control a terminal; netback's own tracebacks keep their lines."""
    record = logging.LogRecord("netback.xenbus", logging.INFO, "", 0, "vif3.0: %s", ("a\n<0>b\x1b[2J",), None)
    assert formatter("%(message)s").format(record).endswith(r"vif3.0: a\n<0>b\x1b[2J")
    record.exc_text = "Traceback\n  line"
    assert len(formatter("%(message)s").format(record).splitlines()) == 3
