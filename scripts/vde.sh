#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Two guests of emulated Xen on Debian's vde_switch: pings and TCP between them, a restart of the switch and a `kill -9` of netback meanwhile.
# All in namespaces of its own, nothing outside is touched. As root, with vde-switch, iperf3, iputils-ping and iproute2.
# Usage: unshare -n -m -i sh scripts/vde.sh NETBACK
#
#   guest 1: 10.0.0.1  --  netback  --  vde_switch  --  netback  --  guest 2: 10.0.0.2
set -eu
netback=$1
out=$(mktemp -d)
jobs=
trap 'for job in $jobs; do kill "$job" 2>/dev/null || true; done; rm -rf "$out"' EXIT

mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mkdir -p /run/netns
ip link set lo up

start() {   # COMMAND...: in the background, its process in $started
    "$@" >>"$out/log" 2>&1 </dev/null &
    started=$!
    jobs="$jobs $started"
}
begin_switch() {
    mkfifo "$out/stdin.$1"      # the switch ends with its standard input
    vde_switch -s "$out/switch" <"$out/stdin.$1" >>"$out/log" 2>&1 &
    switch=$!
    jobs="$jobs $switch"
    eval "exec $1>\"$out/stdin.$1\""
    until [ -S "$out/switch/ctl" ]; do sleep 0.1; done
}
ping_through() {    # WHAT: wait until a ping passes
    printf '%-40s' "$1"
    waited=0
    until ip netns exec guest1 ping -c 1 -W 1 10.0.0.2 >/dev/null; do
        waited=$((waited + 1))
        if [ $waited -gt 60 ]; then echo failed; tail -n 30 "$out/log"; "$netback" list; exit 1; fi
    done
    ip netns exec guest1 ping -c 20 -i 0.05 10.0.0.2 | grep 'packet loss'
}

mkdir -m 700 "$out/xen"
start "$netback" emulate --dir "$out/xen"
until eval "$("$netback" emulate --print-env --dir "$out/xen" 2>/dev/null)"; do sleep 0.2; done
start "$netback" run
backend=$started
begin_switch 8
for guest in 1 2; do
    ip netns add "guest$guest"
    start ip netns exec "guest$guest" "$netback" guest --domid "$guest" --net tap:eth0
    "$netback" attach "$guest" --net "vde:$out/switch" >/dev/null 2>&1
    until ip -n "guest$guest" link show eth0 >/dev/null 2>&1; do sleep 0.1; done
    ip -n "guest$guest" addr add "10.0.0.$guest/24" dev eth0
    ip -n "guest$guest" link set eth0 up
done
ping_through 'two guests'
start ip netns exec guest2 iperf3 -s
until ip netns exec guest1 iperf3 -c 10.0.0.2 -t 2 >"$out/iperf"; do sleep 0.5; done
grep receiver "$out/iperf"
kill "$switch"
wait "$switch" 2>/dev/null || true
begin_switch 9
ping_through 'the switch has ended and begun again'
kill -9 "$backend"
start "$netback" run
ping_through 'netback was killed and has begun again'
