# SPDX-License-Identifier: Apache-2.0
"""For any ring, honest or hostile, the native queue equals the oracle: every byte, frame, notification and fault.

This file draws and plays cases; tests/dataplane defines and compares them.
"""

from tests.dataplane.ring_cases import Case, Deliver, Fill, Grant, Listen, Post, Scribble, Send, Spec, case
from tests.dataplane.side_by_side import run
from tests.oracle import Config

WORDS = (Case, Config, Deliver, Fill, Grant, Listen, Post, Scribble, Send, Spec)

make = case
play = run
