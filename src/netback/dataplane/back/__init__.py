# SPDX-License-Identifier: Apache-2.0
"""The backend's end of a queue: its two directions and what ties them together."""
