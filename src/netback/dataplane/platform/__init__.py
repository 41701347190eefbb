# SPDX-License-Identifier: Apache-2.0
"""Event channels and grants, per burst: one table of functions each, filled by emulated Xen and by real Xen."""
