# SPDX-License-Identifier: Apache-2.0
"""A page to watch: vifs, their rates, the xenbus timeline and rings, live, and a lesson on emulated Xen."""
