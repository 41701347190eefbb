# SPDX-License-Identifier: Apache-2.0
"""The control socket, on which other processes query a running backend."""
