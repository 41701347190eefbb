# SPDX-License-Identifier: Apache-2.0
"""A Xen paravirtual network backend in userspace."""

__version__ = "0.1.0"
