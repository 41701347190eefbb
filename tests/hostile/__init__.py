# SPDX-License-Identifier: Apache-2.0
"""Hostile guests, end to end."""

import pytest

pytest.register_assert_rewrite("tests.hostile.topology")
