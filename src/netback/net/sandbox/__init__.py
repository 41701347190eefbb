# SPDX-License-Identifier: Apache-2.0
"""The network `sandbox`, and its TCP/IP stack in plain Python. The demo has that stack at the ends of a link where the
kernel's own cannot be used.

packets    headers and checksums
tcp        one connection
tcpip      one host: ARP, neighbours, ICMP echo, UDP and TCP over IPv4 and IPv6, without I/O
stack      a host on a socket of frames
services   DHCP, router advertisements, DNS, echo, discard, chargen: bytes to bytes
network    the network of a vif
"""
