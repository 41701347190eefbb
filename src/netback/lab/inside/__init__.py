# SPDX-License-Identifier: Apache-2.0
"""What runs in the booted machines: in dom0 or in a guest."""
