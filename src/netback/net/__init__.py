# SPDX-License-Identifier: Apache-2.0
"""The networks that a vif can be joined to."""
