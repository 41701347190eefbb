# SPDX-License-Identifier: Apache-2.0
"""Tests of the store: its wire, its tree, its server core, its clients, and foreign clients on it."""
