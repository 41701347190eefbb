#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A guest on the network `user` (passt), on an emulated Xen in namespaces of its own: TCP over IPv4 and IPv6 both ways, a forwarded port, the
# host's loopback out of reach, a passt that is killed, and a kill -9 of netback. Nothing outside is touched. As root, with passt, iperf3
# and iproute2. Usage: unshare -n -m -i -p -f --mount-proc --kill-child sh scripts/user.sh NETBACK
# (it kills every passt that it sees, so it must see no other)
#
#   guest 10.0.2.15, fd00:10:0:2::15  --  netback  --  passt  --  up0 10.0.0.2  --  world 10.0.0.1, fd00::1
set -eu
netback=$1
. "$(dirname "$0")/common.sh"
make_world
ip netns add guest

pass() {    # until the guest reaches the world
    until_true 60 ip netns exec guest timeout 2 iperf3 -c 10.0.0.1 -n 1
}
kill_passt() {
    for comm in /proc/[0-9]*/comm; do
        if grep -q '^passt' "$comm"; then kill -9 "$(basename "$(dirname "$comm")")"; fi
    done
}

start_xen "$out/xen"
start_netback
start ip netns exec guest "$netback" guest --domid 1 --net tap:eth0
"$netback" attach 1 --net user,tcp=0.0.0.0/5301
until_true 10 ip -n guest link set eth0 mtu 65520    # as passt offers by DHCP
set_up guest eth0 10.0.2.15/24 fd00:10:0:2::15/64
ip -n guest route add default via 10.0.2.2
ip -n guest -6 route add default dev eth0
start iperf3 -s
start ip netns exec world iperf3 -s
start ip netns exec guest iperf3 -s -p 5301
pass
"$netback" list
echo
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 1
row 'TCP, IPv4, to the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 1 -R
row 'TCP, IPv6, from the guest' ip netns exec guest iperf3 -c fd00::1 -t 1
row 'TCP, IPv6, to the guest' ip netns exec guest iperf3 -c fd00::1 -t 1 -R
row 'TCP, by a forwarded port, to the guest' ip netns exec world iperf3 -c 10.0.0.2 -p 5301 -t 1
if timeout 3 ip netns exec guest iperf3 -c 10.0.2.2 -t 1 >/dev/null 2>&1; then echo "the host's loopback is open"; exit 1; fi
echo "the host's loopback is out of reach"

echo
echo 'passt is killed, which ends its connections:'
kill_passt
pass
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 1
echo 'netback is killed, and passt with it:'
kill -9 "$backend"
start_netback
pass || { echo 'passt hangs (Debian 12 has such a one), and is killed:'; kill_passt; pass; }
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 1
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames|refused'
