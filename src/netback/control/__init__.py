# SPDX-License-Identifier: Apache-2.0
"""The control socket: how other processes ask a running backend."""
