# SPDX-License-Identifier: Apache-2.0
"""Random and hostile input for what reads other people's bytes: `python -m fuzz --seconds N`. README.md tells how."""
