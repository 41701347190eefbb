# SPDX-License-Identifier: Apache-2.0
"""The networks behind a queue, as the data plane sees them."""
