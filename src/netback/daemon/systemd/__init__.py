# SPDX-License-Identifier: Apache-2.0
"""The backend as a systemd service: notifications, the descriptor store, log lines, units."""
