# SPDX-License-Identifier: Apache-2.0
"""The lab: real Xen, dom0 and guests inside QEMU, on any Linux machine.

image      what dom0 and the guests boot, built from Debian packages and kept
tree       netback for dom0's Python, built from this very netback
machine    QEMU, its consoles, and commands in dom0
guests     guests by `xl`, and commands in them
lab        all of it together, as scenarios use it
runner     finds scenarios and runs them
"""
