# SPDX-License-Identifier: Apache-2.0
"""A number for a frame's flow, by which netback spreads frames over queues where the guest selects no hash."""
from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t flow_number(const uint8_t *frame, uint32_t have) noexcept nogil
