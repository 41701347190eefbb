#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A guest behind passt by vhost-user, on an emulated Xen in namespaces of its own: TCP and UDP over IPv4 and IPv6 both
# ways, a restart of passt, and a kill -9 of netback. Nothing outside is touched. As root, with iperf3 and iproute2.
# Usage: unshare -n -m -i sh scripts/passt.sh NETBACK PASST...
#   PASST...: the command of a passt that knows --vhost-user (Debian 13's; Debian 12's does not), passt by default
#
#   guest 10.0.0.2, fd00::2  --  netback  --  passt  --  up0 10.0.0.2  --  world 10.0.0.1, fd00::1
set -eu
netback=$1
shift
[ $# -gt 0 ] || set -- passt
. "$(dirname "$0")/common.sh"
sock=$out/passt.sock
echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range    # passt sends a guest's pings by sockets for them
make_world
ip netns add guest
for namespace in world guest; do     # bbr, some machines' default, takes passt's drops for a path of a few Mbit/s
    ip netns exec "$namespace" sh -c 'echo reno >/proc/sys/net/ipv4/tcp_congestion_control'
done

start_passt() {
    rm -f "$sock" "$sock.repair"
    start "$@" --vhost-user -f -q -s "$sock" --runas 0 -i up0 -t 5301 --no-map-gw
    passt=$started
    while [ ! -S "$sock" ]; do sleep 0.1; done
}
rows() {
    row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 3
    row 'TCP, IPv4, to the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 3 -R
    row 'TCP, IPv6, from the guest' ip netns exec guest iperf3 -6 -c fd00::1 -t 3
    row 'TCP, IPv6, to the guest' ip netns exec guest iperf3 -6 -c fd00::1 -t 3 -R
    row 'UDP, 1400 bytes, from the guest' ip netns exec guest iperf3 -u -c 10.0.0.1 -t 2 -b 300M -l 1400
    row 'UDP, 1400 bytes, to the guest' ip netns exec guest iperf3 -u -c 10.0.0.1 -t 2 -b 300M -l 1400 -R
}

start_xen "$out/xen"
start_passt "$@"
start_netback
start ip netns exec guest "$netback" guest --domid 1 --net tap:eth0
"$netback" attach 1 --net "vhost-user:$sock"
set_up guest eth0 10.0.0.2/24 fd00::2/64
ip -n guest route add default via 10.0.0.1
ip -n guest -6 route add default via fd00::1
start ip netns exec world iperf3 -s
ip netns exec guest ping -c 1 -w 20 10.0.0.1 >/dev/null
ip -n guest link set eth0 mtu 65520    # as passt offers by DHCP; the frontend sets 1500 when it connects
"$netback" list
echo
ip netns exec guest ping -c 3 10.0.0.1 | tail -2
ip netns exec guest ping -c 3 fd00::1 | tail -2
rows

echo
echo 'passt is restarted, which ends its connections, under ping:'
ip netns exec guest ping -c 30 -i 0.1 10.0.0.1 >"$out/pings" &
pings=$!
sleep 1
kill "$passt"
start_passt "$@"
wait "$pings" || true
tail -2 "$out/pings"
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 2
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames|refused'

echo
echo 'netback is killed during a transfer:'
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 6 &
transfer=$!
sleep 2
kill -9 "$backend"
start_netback
wait "$transfer"
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames'
