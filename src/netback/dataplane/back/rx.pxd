# SPDX-License-Identifier: Apache-2.0
"""Network to guest."""
from netback.dataplane.queue cimport link_t, workspace_t

cdef int serve_rx(link_t *link, workspace_t *ws) noexcept nogil
