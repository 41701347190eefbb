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
out=$(mktemp -d)
chmod 711 "$out"
sock=$out/passt.sock
jobs=
number=0
trap 'for job in $jobs; do kill "$job" 2>/dev/null || true; done; rm -rf "$out"' EXIT

mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mkdir -p /run/netns
ip link set lo up
echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range    # passt sends a guest's pings by sockets for them
ip netns add world
ip netns add guest
ip link add up0 type veth peer name world0 netns world
ip addr add 10.0.0.2/24 dev up0
ip addr add fd00::2/64 dev up0 nodad
ip link set up0 up
ip -n world addr add 10.0.0.1/24 dev world0
ip -n world addr add fd00::1/64 dev world0 nodad
ip -n world link set world0 up
ip -n world link set lo up
ip route add default via 10.0.0.1
ip -6 route add default via fd00::1

start() {   # COMMAND...: in the background, its process in $started, its output in a file
    number=$((number + 1))
    "$@" >"$out/log.$number" 2>&1 &
    started=$!
    jobs="$jobs $started"
}
start_passt() {
    rm -f "$sock" "$sock.repair"
    start "$@" --vhost-user -f -q -s "$sock" --runas 0 -i up0 -t 5301 --no-map-gw
    passt=$started
    while [ ! -S "$sock" ]; do sleep 0.1; done
}
start_netback() {
    start "$netback" run
    backend=$started
}
row() {     # NAME COMMAND...: the rate that iperf3 reports, or its error
    name=$1
    shift
    printf '%-34s' "$name"
    if timeout 20 ip netns exec guest "$@" -J >"$out/json"; then
        python3 -c "import json,sys; e=json.load(open(sys.argv[1]))['end']; s=e.get('sum_received') or e['sum']; \
print(f\"{s['bits_per_second']/1e6:8.0f} Mbit/s\", f\"{s.get('lost_percent', 0):.1f} % lost\" if 'lost_percent' in s else '')" "$out/json"
    else
        echo "failed: $(cat "$out/json")"
        return 1
    fi
}
rows() {
    row 'TCP, IPv4, from the guest' iperf3 -c 10.0.0.1 -t 3
    row 'TCP, IPv4, to the guest' iperf3 -c 10.0.0.1 -t 3 -R
    row 'TCP, IPv6, from the guest' iperf3 -6 -c fd00::1 -t 3
    row 'TCP, IPv6, to the guest' iperf3 -6 -c fd00::1 -t 3 -R
    row 'UDP, 1400 bytes, from the guest' iperf3 -u -c 10.0.0.1 -t 2 -b 300M -l 1400
    row 'UDP, 1400 bytes, to the guest' iperf3 -u -c 10.0.0.1 -t 2 -b 300M -l 1400 -R
}

mkdir -m 700 "$out/xen"
start "$netback" emulate --dir "$out/xen"
until eval "$("$netback" emulate --print-env --dir "$out/xen" 2>/dev/null)"; do sleep 0.2; done
start_passt "$@"
start_netback
start ip netns exec guest "$netback" guest --domid 1 --net tap:eth0
"$netback" attach 1 --net "vhost-user:$sock"
ip -n guest link set lo up
ip -n guest link set eth0 mtu 65520 up    # as passt offers by DHCP
ip -n guest addr add 10.0.0.2/24 dev eth0
ip -n guest addr add fd00::2/64 dev eth0 nodad
ip -n guest route add default via 10.0.0.1
ip -n guest -6 route add default via fd00::1
start ip netns exec world iperf3 -s
ip netns exec guest ping -c 1 -w 20 10.0.0.1 >/dev/null || { cat "$out"/log.*; "$netback" list; exit 1; }
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
row 'TCP, IPv4, from the guest' iperf3 -c 10.0.0.1 -t 2
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames|refused'

echo
echo 'netback is killed during a transfer:'
row 'TCP, IPv4, from the guest' iperf3 -c 10.0.0.1 -t 6 &
transfer=$!
sleep 2
kill -9 "$backend"
start_netback
wait "$transfer"
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames'
