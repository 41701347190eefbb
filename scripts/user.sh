#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A guest on the network `user` (passt), on an emulated Xen in namespaces of its own: TCP over IPv4 and IPv6 both ways, a forwarded port, the
# host's loopback out of reach, a passt that is killed, and a kill -9 of netback. Nothing outside is touched. As root, with passt, iperf3
# and iproute2. Usage: unshare -n -m -i sh scripts/user.sh NETBACK
#
#   guest 10.0.2.15, fd00:10:0:2::15  --  netback  --  passt  --  up0 10.0.0.2  --  world 10.0.0.1, fd00::1
set -eu
netback=$1
out=$(mktemp -d)
chmod 711 "$out"
jobs=
number=0
trap 'for job in $jobs; do kill "$job" 2>/dev/null || true; done; rm -rf "$out"' EXIT

mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mkdir -p /run/netns
ip link set lo up
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
    "$@" >"$out/log.$number" 2>&1 </dev/null &
    started=$!
    jobs="$jobs $started"
}
row() {     # NAME COMMAND...: the rate that iperf3 reports, or its error
    name=$1
    shift
    printf '%-44s' "$name"
    if timeout 20 "$@" -J >"$out/json"; then
        python3 -c "import json,sys; e=json.load(open(sys.argv[1]))['end']; \
print(f\"{e['sum_received']['bits_per_second']/1e6:8.0f} Mbit/s\")" "$out/json"
    else
        echo "failed: $(cat "$out/json")"
        return 1
    fi
}
guest() { ip netns exec guest "$@"; }
pass() {    # until the guest reaches the world; a failure after 20 attempts
    tries=0
    until guest timeout 2 iperf3 -c 10.0.0.1 -n 1 >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 20 ] || { "$netback" list; return 1; }
        sleep 0.2
    done
}
kill_passt() {
    for comm in /proc/[0-9]*/comm; do
        if grep -q '^passt' "$comm"; then kill -9 "$(basename "$(dirname "$comm")")"; fi
    done
}

mkdir -m 700 "$out/xen"
start "$netback" emulate --dir "$out/xen"
until eval "$("$netback" emulate --print-env --dir "$out/xen" 2>/dev/null)"; do sleep 0.2; done
start "$netback" run
backend=$started
start ip netns exec guest "$netback" guest --domid 1 --net tap:eth0
"$netback" attach 1 --net user,tcp=0.0.0.0/5301
ip -n guest link set lo up
ip -n guest link set eth0 mtu 65520 up    # as passt offers by DHCP
ip -n guest addr add 10.0.2.15/24 dev eth0
ip -n guest addr add fd00:10:0:2::15/64 dev eth0 nodad
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
start "$netback" run
pass || { echo 'passt hangs (Debian 12 has such a one), and is killed:'; kill_passt; pass; }
row 'TCP, IPv4, from the guest' ip netns exec guest iperf3 -c 10.0.0.1 -t 1
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames|refused'
