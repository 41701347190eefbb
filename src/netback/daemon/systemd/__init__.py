# SPDX-License-Identifier: Apache-2.0
"""The backend as a systemd service: notifications, descriptors that systemd holds, log lines, units."""
