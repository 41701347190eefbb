# SPDX-License-Identifier: Apache-2.0
"""Judges frontends and backends against the protocol, rule by rule: `netback conform`."""
