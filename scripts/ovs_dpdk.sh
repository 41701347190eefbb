#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Two guests behind Open vSwitch with DPDK by vhost-user, on an emulated Xen in namespaces of its own: TCP and UDP both ways
# between guest and host and between the guests, several queues, a restart of Open vSwitch, and a kill -9 of netback. It
# needs no huge pages. Nothing outside is touched. As root, with iperf3 and iproute2.
# Usage: unshare -n -m -i sh scripts/ovs_dpdk.sh NETBACK [ROOT]
#   ROOT: a root directory with Debian's openvswitch-switch-dpdk; without it this system's is used. One is made by
#         mmdebstrap --variant=minbase --include=openvswitch-switch-dpdk,librte-mempool-ring25 trixie ROOT
#         (without DPDK's driver of pools every port fails: "Failed to create mempool ... Invalid argument")
#   TSO=true in the environment: Open vSwitch takes and sends TCP segments larger than a frame (userspace-tso-enable)
#
#   guest one 10.0.0.2, fd00::2  --  netback, which listens  --  port one  \
#                                                                           bridge br0 10.0.0.1, fd00::1
#   guest two 10.0.0.3, fd00::3  --  netback, which connects --  port two  /
set -eu
netback=$1
root=${2:-}
. "$(dirname "$0")/common.sh"
mkdir /run/openvswitch
ip netns add one
ip netns add two
if [ "$root" ]; then    # it sees this system's devices, sockets and files of the test
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --bind /run "$root/run"
    mount -t tmpfs tmp "$root/tmp"
fi
ovs() {     # COMMAND...: of Open vSwitch, in its root
    if [ "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}
vsctl() {
    ovs ovs-vsctl --timeout=20 "$@"
}
start_switch() {
    vsctl --no-wait set Open_vSwitch . dpdk_initialized=false    # as an earlier process may have left it
    start ${root:+chroot "$root"} /usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk unix:/run/openvswitch/db.sock \
        --unixctl=/run/openvswitch/switch.ctl --log-file="$out/vswitchd.log"
    switch=$started
    until [ "$(vsctl get Open_vSwitch . dpdk_initialized)" = true ]; do
        kill -0 "$switch" || { cat "$out/vswitchd.log"; exit 1; }
        sleep 0.2
    done
}
guest() {   # NAMESPACE DOMID NUMBER: a guest whose tap has the addresses of this number
    start ip netns exec "$1" "$netback" guest --domid "$2" --net tap:eth0 --queues 2
    set_up "$1" eth0 "10.0.0.$3/24" "fd00::$3/64"
}

ovs ovsdb-tool create "$out/conf.db" /usr/share/openvswitch/vswitch.ovsschema
start ${root:+chroot "$root"} ovsdb-server "$out/conf.db" --remote=punix:/run/openvswitch/db.sock \
    --pidfile=/run/openvswitch/ovsdb-server.pid
until [ -S /run/openvswitch/db.sock ]; do sleep 0.1; done
# --no-huge implies --legacy-mem, which must be named: else Open vSwitch adds --in-memory, and DPDK refuses the two together.
vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true other_config:pmd-cpu-mask=0x1 \
    other_config:pmd-sleep-max=50 other_config:per-port-memory=true other_config:userspace-tso-enable="${TSO:-false}" \
    other_config:dpdk-extra='--no-huge --legacy-mem -m 512 --no-pci --iova-mode=va'
start_switch
vsctl add-br br0 -- set bridge br0 datapath_type=netdev
vsctl add-port br0 one -- set Interface one type=dpdkvhostuserclient options:vhost-server-path="$out/one.sock"
vsctl add-port br0 two -- set Interface two type=dpdkvhostuser
ip link set br0 up
ip addr add 10.0.0.1/24 dev br0
ip addr add fd00::1/64 dev br0 nodad

start_xen "$out/xen"
start_netback --queues 2
start iperf3 -s
guest one 1 2
guest two 2 3
"$netback" attach 1 --net "vhost-user:$out/one.sock,server"
"$netback" attach 2 --net "vhost-user:/run/openvswitch/two"
start ip netns exec two iperf3 -s
ip netns exec one ping -c 1 -w 20 10.0.0.1 >/dev/null
ip netns exec one ping -c 1 -w 20 10.0.0.3 >/dev/null
"$netback" list
ovs ovs-appctl -t /run/openvswitch/switch.ctl dpif-netdev/pmd-rxq-show | grep port:
echo
ip netns exec one ping -c 3 10.0.0.1 | tail -2
ip netns exec one ping -c 3 fd00::1 | tail -2
row 'TCP, from guest one' ip netns exec one iperf3 -c 10.0.0.1 -t 3
row 'TCP, to guest one' ip netns exec one iperf3 -c 10.0.0.1 -t 3 -R
row 'TCP, IPv6, from guest one' ip netns exec one iperf3 -6 -c fd00::1 -t 3
row 'TCP, IPv6, to guest one' ip netns exec one iperf3 -6 -c fd00::1 -t 3 -R
row 'TCP, guest one to guest two' ip netns exec one iperf3 -c 10.0.0.3 -t 3
row 'TCP, guest two to guest one' ip netns exec one iperf3 -c 10.0.0.3 -t 3 -R
row 'TCP, 4 flows, one to two' ip netns exec one iperf3 -c 10.0.0.3 -t 3 -P 4
row 'UDP, 1400 bytes, from guest one' ip netns exec one iperf3 -u -c 10.0.0.1 -t 2 -b 200M -l 1400
row 'UDP, 1400 bytes, to guest one' ip netns exec one iperf3 -u -c 10.0.0.1 -t 2 -b 200M -l 1400 -R
"$netback" stats 1 | grep -E 'tx_frames|rx_frames'

echo
echo 'Open vSwitch is restarted during a transfer from one guest to the other:'
row 'TCP, guest one to guest two' ip netns exec one iperf3 -c 10.0.0.3 -t 15 &
transfer=$!
sleep 2
kill "$switch"
wait "$switch" 2>/dev/null || true
start_switch
wait "$transfer"
row 'TCP, to guest one' ip netns exec one iperf3 -c 10.0.0.1 -t 2 -R
"$netback" list
"$netback" stats 1 | grep -E 'tx_frames|rx_frames|refused'

echo
echo 'netback is killed during a transfer:'
row 'TCP, guest one to guest two' ip netns exec one iperf3 -c 10.0.0.3 -t 10 &
transfer=$!
sleep 2
kill -9 "$backend"
start_netback --queues 2
wait "$transfer"
"$netback" list
