# SPDX-License-Identifier: Apache-2.0
"""The platform's operations for a burst: events and grant copies, a table of functions for each platform."""
