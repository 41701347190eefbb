# SPDX-License-Identifier: Apache-2.0
"""A guest's RX ring to the network behind it."""
from netback.dataplane.front.queue cimport front_queue
from netback.dataplane.link cimport link_t
from netback.dataplane.workspace cimport workspace_t

cdef int poll_front_rx(link_t *link, workspace_t *ws) noexcept nogil
cdef void post_buffers(front_queue *queue) noexcept nogil
