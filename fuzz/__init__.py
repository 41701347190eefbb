# SPDX-License-Identifier: Apache-2.0
"""Random and hostile input for every parser of foreign bytes: `python -m fuzz --seconds N`. See README.md."""
