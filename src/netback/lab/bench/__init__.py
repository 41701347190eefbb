# SPDX-License-Identifier: Apache-2.0
"""How fast the lab's backends are, and where netback's time goes."""
