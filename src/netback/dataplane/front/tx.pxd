# SPDX-License-Identifier: Apache-2.0
"""Network behind a guest to its TX ring."""
from netback.dataplane.extras cimport frame_meta
from netback.dataplane.front.queue cimport front_queue
from netback.dataplane.link cimport link_t
from netback.dataplane.workspace cimport workspace_t

cdef int poll_front_tx(link_t *link, workspace_t *ws) noexcept nogil
cdef bint reap(front_queue *queue) noexcept nogil
cdef bint send_change(front_queue *queue, frame_meta *meta) noexcept nogil
