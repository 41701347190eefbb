# SPDX-License-Identifier: Apache-2.0
"""A TCP/IP stack in plain Python, for both ends of a link where the kernel's own cannot be used.

tcpip      ARP, ICMP echo and TCP over IPv4, without I/O
stack      one host on a socket of frames
"""
