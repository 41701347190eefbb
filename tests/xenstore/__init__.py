# SPDX-License-Identifier: Apache-2.0
"""Tests of the store: its wire, its tree, its server core, its clients, and other people's clients on it."""
