#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A guest of QEMU and a guest of emulated Xen on one segment, by each socket that QEMU's netdevs and netback have in common: the
# firmware of the one (iPXE) gets its address by DHCP and a file by TFTP from dnsmasq in the other. All in namespaces of its own, nothing
# outside is touched. As root, with qemu-system-x86 (7.2 or later), ipxe-qemu, dnsmasq-base and iproute2.
# Usage: unshare -n -m -i sh scripts/qemu.sh NETBACK
#
#   guest: dnsmasq 10.0.0.1  --  netback  --  stream, dgram or l2tpv3  --  QEMU: iPXE
set -eu
netback=$1
. "$(dirname "$0")/common.sh"
mkdir "$out/tftp"
ip netns add guest
ip -n guest link set lo up
# shellcheck disable=SC2016 # iPXE's own variables
printf '#!ipxe\necho netback: ${net0/ip} has the file\nprompt\n' >"$out/tftp/boot.ipxe"

boot() {    # NAME NETBACK'S SPEC QEMU'S NETDEV [late]: a guest of each; `late`: QEMU starts after netback
    printf '%-46s' "$1"
    guest=$((guest + 1))
    [ "${4:-}" = late ] || run_qemu "$3"
    start ip netns exec guest "$netback" guest --domid "$guest" --net "tap:eth$guest"
    front=$started
    "$netback" attach "$guest" --net "$2" >/dev/null
    [ "${4:-}" != late ] || run_qemu "$3"
    set_up guest "eth$guest" 10.0.0.1/24
    start ip netns exec guest dnsmasq -d -C /dev/null -p 0 -i "eth$guest" -z --dhcp-range=10.0.0.100,10.0.0.200 --dhcp-boot=boot.ipxe \
        --enable-tftp --tftp-root="$out/tftp" --leasefile-ro --user=root
    server=$started
    until_true 120 grep -a 'netback: [0-9.]* has the file' "$qemu_log"
    grep -ao 'netback: [0-9.]* has the file' "$qemu_log"
    kill "$qemu" "$server" "$front"
    wait "$qemu" "$server" "$front" 2>/dev/null || true
    rm -f "$out/n.sock" "$out/q.sock"
}
run_qemu() {
    start qemu-system-x86_64 -nodefaults -machine pc,graphics=off -m 64 -display none -serial stdio -boot n \
        -device virtio-net-pci,netdev=n -netdev "$1"
    qemu=$started
    qemu_log=$log
    case $1 in *server=on*unix*) while [ ! -S "$out/q.sock" ]; do sleep 0.1; done ;; esac
}

start_xen "$out/xen"
start_netback
guest=0
boot 'stream, UNIX, netback connects' "stream:$out/q.sock" "stream,id=n,server=on,addr.type=unix,addr.path=$out/q.sock"
boot 'stream, UNIX, netback listens' "stream:$out/n.sock,server" \
    "stream,id=n,server=off,addr.type=unix,addr.path=$out/n.sock" late
boot 'stream, TCP, netback listens' stream:127.0.0.1:5001,server \
    stream,id=n,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=5001 late
boot 'dgram, UNIX' "dgram:$out/q.sock,local=$out/n.sock" \
    "dgram,id=n,local.type=unix,local.path=$out/q.sock,remote.type=unix,remote.path=$out/n.sock"
boot 'dgram, UDP' dgram:127.0.0.1:5002,local=127.0.0.1:5003 \
    dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=5002,remote.type=inet,remote.host=127.0.0.1,remote.port=5003
boot 'dgram, multicast' dgram:239.1.2.3:5004,local=127.0.0.1 \
    dgram,id=n,local.type=inet,local.host=127.0.0.1,local.port=0,remote.type=inet,remote.host=239.1.2.3,remote.port=5004
boot 'l2tpv3, UDP' l2tpv3:127.0.0.1:5005,local=127.0.0.1:5006,session=7,rx_session=8,cookie=1122334455667788,rx_cookie=8877665544332211 \
    l2tpv3,id=n,src=127.0.0.1,srcport=5005,dst=127.0.0.1,dstport=5006,udp=on,txsession=8,rxsession=7,cookie64=on,txcookie=0x8877665544332211,rxcookie=0x1122334455667788
boot 'l2tpv3, IP, counter' l2tpv3:127.0.0.2,local=127.0.0.1,session=7,counter=on \
    l2tpv3,id=n,src=127.0.0.2,dst=127.0.0.1,udp=off,txsession=7,rxsession=7,counter=on
