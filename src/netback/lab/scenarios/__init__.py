# SPDX-License-Identifier: Apache-2.0
"""What must hold on a real Xen, a file each. `runner` says how one is written."""
