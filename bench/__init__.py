# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: how fast frames cross the rings, beside what the same work costs without them.

Knows netback, not the other way round.
"""
