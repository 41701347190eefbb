# SPDX-License-Identifier: Apache-2.0
"""`netback demo`: two TCP/IP stacks joined by Xen's rings, on any Linux machine.

command        the command's options, its files and its end
run            the order of events, and the measurements
topology       the processes around the rings, and the states of the vif
tiers          what the two stacks are, and which tier works here
stacks         the stacks: Linux's own in a namespace, or one in plain Python
processes      emulated Xen, the backend and the netfront, each a process
child          a process and its parent's end of it
namespaces     network and user namespaces without names
report, ui     the results as values, and on a terminal
interruption   signals that end a demo
"""
