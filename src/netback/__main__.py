# SPDX-License-Identifier: Apache-2.0
"""`python -m netback`: the command, if its script is not installed."""

from netback.cli import main

main()
