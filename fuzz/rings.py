# SPDX-License-Identifier: Apache-2.0
"""On any ring, honest or hostile, the native queue is the oracle: every byte, frame, notification and fault.

Says how cases are drawn and played; what they are and what is compared, tests/dataplane knows.
"""

from tests.dataplane.ring_cases import Case, Deliver, Fill, Grant, Listen, Post, Scribble, Send, Spec, case
from tests.dataplane.side_by_side import run
from tests.oracle import Config

WORDS = (Case, Config, Deliver, Fill, Grant, Listen, Post, Scribble, Send, Spec)

make = case
play = run
