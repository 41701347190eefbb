# SPDX-License-Identifier: Apache-2.0
"""The lab: real Xen, dom0 and guests inside QEMU, on any Linux machine.

image         what dom0 and the guests boot: built from Debian packages and cached
initramfs     a guest's initramfs, built from files of dom0's root
package       netback's Debian package, built of this checkout and cached
chroot        commands in a root of Debian's packages
install       the disk from which dom0 installs netback
machine       QEMU, its consoles, and commands in dom0
host          a booted Xen host with a backend and guests: what scenarios use
runner        finds scenarios and runs them
scenarios/    what must hold on real Xen, one file each
custom_guest  a user's own kernel on such a host
tools         iperf3, ping and leak checks as scenarios use them
bench/        how fast each backend is, and where netback's time goes
inside/       programs that run in dom0 or in a guest
"""
