# SPDX-License-Identifier: Apache-2.0
"""`python -m netback`: the command, where no script of it is installed."""

from netback.cli import main

main()
