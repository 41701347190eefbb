#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian's unmodified vif-bridge and vif-route, run by netback on an emulated Xen in namespaces of its own, with the nodes
# that libxl writes: a guest on a bridge and a routed one, a kill -9 of netback, both devices' removal, and a bridge that
# does not exist. Nothing outside is touched. As root, with iproute2, xenstore-utils and bash.
# Usage: unshare -n -m -i sh scripts/hotplug.sh NETBACK SCRIPTS
#   SCRIPTS: /etc/xen/scripts of xen-utils-common, or of that package unpacked (apt-get download, dpkg-deb -x; vif-route
#   needs ifconfig of net-tools in PATH)
set -eu
netback=$1
scripts=$(realpath "$2")
out=$(mktemp -d)
jobs=
trap 'for job in $jobs; do kill "$job" 2>/dev/null || true; done; rm -rf "$out"' EXIT

mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mount -t tmpfs log /var/log
mount -t sysfs sys /sys                 # which shows this namespace's links
mkdir -p /run/netns /var/log/xen
ip link set lo up
ip link add xenbr0 type bridge
ip addr add 10.0.0.1/24 dev xenbr0
ip link set xenbr0 up
for guest in guest1 guest2; do
    ip netns add $guest
    ip -n $guest link set lo up
done

start() {   # COMMAND...: in the background, its process in $started
    "$@" >>"$out/log" 2>&1 &
    started=$!
    jobs="$jobs $started"
}
start_netback() {
    start "$netback" run --config "$out/netback.toml"
    backend=$started
}
plug() {    # DOMID SCRIPT NODE VALUE...: what libxl writes for a vif, its state last
    domid=$1 script=$2
    shift 2
    front=/local/domain/$domid/device/vif/0 back=/local/domain/0/backend/vif/$domid/0
    xenstore-write $front "" $back ""
    xenstore-chmod $front n$domid r0
    xenstore-chmod $back n0 r$domid
    while [ $# -gt 0 ]; do
        xenstore-write "$back/$1" "$2"
        shift 2
    done
    xenstore-write $front/backend $back $front/backend-id 0 $front/handle 0 $front/mac 00:16:3e:00:00:0$domid \
        $front/state 1 $back/frontend $front $back/frontend-id $domid $back/online 1 $back/handle 0 \
        $back/mac 00:16:3e:00:00:0$domid $back/script "$scripts/$script" $back/type vif $back/hotplug-status "" $back/state 1
}
unplug() {  # DOMID: what libxl writes, and what it removes when the state is 6
    back=/local/domain/0/backend/vif/$1/0
    xenstore-write $back/online 0 $back/state 5
    until [ "$(xenstore-read $back/state)" = 6 ]; do sleep 0.1; done
    while ip link show vif$1.0 >/dev/null 2>&1; do sleep 0.1; done
    xenstore-rm $back
}
await() {   # DOMID STATUS
    until [ "$(xenstore-read "/local/domain/0/backend/vif/$1/0/hotplug-status")" = "$2" ]; do sleep 0.1; done
}
ran() {
    grep -oE 'vif[12]\.0: [^ ]*/(vif-[a-z]+ [a-z]+) is done' "$out/log" | sed 's:[^ ]*/::'
}

cat >"$out/netback.toml" <<END
hotplug = "netback"
hotplug_seconds = 20
hotplug_directories = ["$scripts"]
END
mkdir -m 700 "$out/xen"
start "$netback" emulate --dir "$out/xen"
until eval "$("$netback" emulate --print-env --dir "$out/xen" 2>/dev/null)" && xenstore-read domid >/dev/null 2>&1; do sleep 0.2; done
start_netback
start ip netns exec guest1 "$netback" guest --domid 1 --net tap:eth0
start ip netns exec guest2 "$netback" guest --domid 2 --net tap:eth0
until xenstore-read /local/domain/1/domid >/dev/null 2>&1 && xenstore-read /local/domain/2/domid >/dev/null 2>&1; do sleep 0.2; done

plug 1 vif-bridge bridge xenbr0 mtu 1400
plug 2 vif-route ip 10.2.0.2 gatewaydev xenbr0
await 1 connected
await 2 connected
for guest in 1:10.0.0.2/24 2:10.2.0.2/32; do
    ip -n guest${guest%%:*} addr add ${guest#*:} dev eth0
    ip -n guest${guest%%:*} link set eth0 up
done
ip -n guest2 route add 10.0.0.1 dev eth0
ping -c 3 -w 20 10.0.0.2 | tail -2
ip netns exec guest2 ping -c 3 -w 20 10.0.0.1 | tail -2
"$netback" list
ip -br link show master xenbr0
ip route show dev vif2.0
ran

echo
echo 'netback is killed; the next one runs no script again:'
kill -9 "$backend"
start_netback
ping -c 3 -w 20 10.0.0.2 | tail -2
ran

echo
echo 'both vifs are removed; a bridge that does not exist:'
unplug 1
unplug 2
ran
ip -br link show
plug 1 vif-bridge bridge nosuch
await 1 error
until xenstore-read /local/domain/0/error/backend/vif/1/0/error 2>/dev/null; do sleep 0.1; done
echo
grep WARNING "$out/log" || grep -i hotplug "$out/log"
