# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: how fast frames cross the rings, beside baselines that do the same work without rings.

The package imports netback; netback does not import it.
"""
