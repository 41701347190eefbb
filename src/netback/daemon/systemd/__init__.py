# SPDX-License-Identifier: Apache-2.0
"""What systemd and the backend tell each other."""
