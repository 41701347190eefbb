# SPDX-License-Identifier: Apache-2.0
"""The command `netback`. What a command does is elsewhere: here are words, defaults and exit codes."""

from netback.cli.app import main

__all__ = ["main"]
