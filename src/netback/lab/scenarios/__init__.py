# SPDX-License-Identifier: Apache-2.0
"""What must hold on real Xen, one file per scenario. runner.py describes the form."""
