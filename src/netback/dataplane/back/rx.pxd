# SPDX-License-Identifier: Apache-2.0
"""Network to guest."""
from netback.dataplane.link cimport link_t
from netback.dataplane.workspace cimport workspace_t

cdef int poll_rx(link_t *link, workspace_t *ws) noexcept nogil
