# SPDX-License-Identifier: Apache-2.0
"""Rules for every test: a skip fails in CI unless cargo is missing; no property fails because a machine was slow."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# A property's verdict must not depend on the clock: Hypothesis fails a test whose first ten draws take 30 seconds in
# all, which a paused or overloaded machine can cause.
settings.register_profile("netback", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("netback")

# A shell starts commands in the background with SIGINT ignored, nohup with SIGHUP. Children inherit that, and one that
# a test interrupts before it has its handler would then lose the signal.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


NO_CARGO = "there is no cargo: the client in Rust is not tested"
"""The one reason to skip a test in CI. pytest's summary has a line with it."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where CI=true."""
    report = yield
    allowed = hasattr(report, "wasxfail") or NO_CARGO in str(report.longrepr)
    if report.skipped and not allowed and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
