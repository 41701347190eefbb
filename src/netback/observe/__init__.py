# SPDX-License-Identifier: Apache-2.0
"""Reports of the program: trace points, bounded logs, captures."""
