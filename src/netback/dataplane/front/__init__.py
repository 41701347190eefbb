# SPDX-License-Identifier: Apache-2.0
"""The frontend's end of a queue."""
