# SPDX-License-Identifier: Apache-2.0
"""Log lines on stderr, in the journal's format if stderr is connected to the journal."""

import logging
import os
import sys
from collections.abc import Mapping

from netback.errors import printable

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""The syslog(3) priority for each level, keyed by the lowest level that it covers."""


class LineFormatter(logging.Formatter):
    """Formats each message as one printable line: messages quote guests, the store and configuration files."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name.startswith("netback"):
            record.message = printable(record.message)
        return super().formatMessage(record)


class JournalFormatter(LineFormatter):
    """Prefixes each line with its priority. The journal adds the time and makes each line an entry."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def is_journal(fd: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a descriptor is the stream that $JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up_log(level: int = logging.INFO) -> None:
    """Set up logging; called once in each process that serves."""
    handler = logging.StreamHandler()
    if is_journal(sys.stderr.fileno()):
        handler.setFormatter(JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
