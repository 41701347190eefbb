# SPDX-License-Identifier: Apache-2.0
"""Guest to network."""
from netback.dataplane.queue cimport link_t, workspace_t

cdef int serve_tx(link_t *link, workspace_t *ws) noexcept nogil
