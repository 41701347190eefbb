#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A network over two hosts by OVN: a guest of emulated Xen on each, with Linux's stack, netback, Open vSwitch with its userspace datapath
# (no kernel module), and a geneve tunnel between the hosts. OVN gives the guests their addresses and drops what its rule names; netback
# is killed and started again meanwhile. Nothing outside is touched, and nothing is left. As root, with the packages of `ovn` in
# packages.txt. Usage: unshare -n -m -i -p -f --mount-proc --kill-child sh scripts/ovn.sh NETBACK   (make ovn)
#
#   guest web 10.0.0.11  --  netback  --  host one 172.16.0.1: br-int  --  br-phys  --  under0  \
#   (OVN's central databases are on host one)                                                     geneve
#   guest db 10.0.0.12   --  netback  --  host two 172.16.0.2: br-int  --  br-phys  --  under0  /
set -eu
netback=$1
. "$(dirname "$0")/common.sh"
central=$out/one

vsctl() {   # HOST ARGUMENTS...
    host=$1
    shift
    ovs-vsctl --timeout=20 --db="unix:$out/$host/db.sock" "$@"
}
nbctl() { ovn-nbctl --timeout=20 --db="unix:$central/nb.sock" "$@"; }
sbctl() { ovn-sbctl --timeout=20 --db="unix:$central/sb.sock" "$@"; }

database() {    # HOST NAME SCHEMA REMOTE...: a database of this host
    host=$1
    name=$2
    ovsdb-tool create "$out/$host/$name.conf" "$3"
    shift 3
    for remote; do set -- "$@" "--remote=$remote"; shift; done
    start env OVS_RUNDIR="$out/$host" ip netns exec "$host" ovsdb-server "$out/$host/$name.conf" "$@" \
        --remote="punix:$out/$host/$name.sock" --unixctl="$out/$host/$name.ctl"
    until_true 10 ovsdb-client list-dbs "unix:$out/$host/$name.sock"
}
start_host() {  # NAME ADDRESS: a switch, its way to the other host, and OVN's controller
    mkdir "$out/$1"
    database "$1" db /usr/share/openvswitch/vswitch.ovsschema
    vsctl "$1" --no-wait init
    start env OVS_RUNDIR="$out/$1" ip netns exec "$1" ovs-vswitchd "unix:$out/$1/db.sock" --disable-system --unixctl="$out/$1/switch.ctl"
    vsctl "$1" add-br br-phys -- set bridge br-phys datapath_type=netdev -- add-port br-phys under0
    set_up "$1" under0
    set_up "$1" br-phys "$2/24"
    vsctl "$1" set Open_vSwitch . external_ids:system-id="host-$1" external_ids:ovn-remote=tcp:172.16.0.1:6642 \
        external_ids:ovn-encap-type=geneve external_ids:ovn-encap-ip="$2" external_ids:ovn-bridge-datapath-type=netdev
}
start_controller() {    # HOST
    start env OVS_RUNDIR="$out/$1" OVN_RUNDIR="$out/$1" ip netns exec "$1" ovn-controller "unix:$out/$1/db.sock"
    until_true 20 vsctl "$1" br-exists br-int
}
run_netback() { # HOST: the backend of this host
    start ip netns exec "$1" "$netback" run --dir "$out/$1/xen"
    backend=$started
    until_true 10 "$netback" list --dir "$out/$1/xen"
}
start_guest() { # HOST NAME MAC: a guest, whose port is NAME-0 for OVN
    start_xen "$out/$1/xen"
    run_netback "$1"
    ip netns add "$2"
    start ip netns exec "$2" "$netback" guest --dir "$out/$1/xen" --domid 1 --name "$2" --net tap:eth0
    "$netback" attach "$2" --dir "$out/$1/xen" --mac "$3" --net "ovs:br-int,iface-id={name}-{devid},db=unix:$out/$1/db.sock" >/dev/null
    set_up "$2" eth0
}
port() {        # NAME MAC ADDRESS: a port of the logical switch
    nbctl lsp-add net "$1" -- lsp-set-addresses "$1" "$2 $3" -- lsp-set-port-security "$1" "$2 $3" -- lsp-set-dhcpv4-options "$1" "$dhcp"
}
get_address() { # GUEST: by DHCP, with the MTU that leaves room for the tunnel
    ip netns exec "$1" busybox udhcpc -i eth0 -n -q -f -t 20 -T 1 -s "$out/dhcp" >"$out/dhcp.$1" 2>&1 || { cat "$out/dhcp.$1"; return 1; }
}
connects() { ip netns exec web timeout 3 iperf3 -c 10.0.0.12 -p "$1" -n 1 >/dev/null 2>&1; }
refused() { ! connects "$1"; }
up() {          # PORT: OVN has bound it, and its host has its flows
    [ "$(nbctl get Logical_Switch_Port "$1" up)" = true ]
}
say() {         # WHAT RESULT
    printf '%-46s%s\n' "$1" "$2"
}

ip netns add one
ip netns add two
ip -n one link add under0 type veth peer name under0 netns two
cat >"$out/dhcp" <<'END'
#!/bin/sh
[ "$1" != bound ] || { ip link set "$interface" mtu "$mtu"; ip addr add "$ip/$mask" dev "$interface"; }
END
chmod 755 "$out/dhcp"

start_host one 172.16.0.1
start_host two 172.16.0.2
database one nb /usr/share/ovn/ovn-nb.ovsschema
database one sb /usr/share/ovn/ovn-sb.ovsschema ptcp:6642:172.16.0.1
start env OVN_RUNDIR="$central" ip netns exec one ovn-northd --ovnnb-db="unix:$central/nb.sock" --ovnsb-db="unix:$central/sb.sock"
nbctl init -- ls-add net
dhcp=$(nbctl create DHCP_Options cidr=10.0.0.0/24 \
    options='"server_id"="10.0.0.1" "server_mac"="00:16:3e:00:00:01" "lease_time"="3600" "mtu"="1442"')
port web-0 00:16:3e:00:00:11 10.0.0.11
port db-0 00:16:3e:00:00:12 10.0.0.12
start_controller one
start_controller two
start_guest two db 00:16:3e:00:00:12
start_guest one web 00:16:3e:00:00:11
until_true 20 up web-0
until_true 20 up db-0
sbctl show

get_address web
get_address db
say 'web has by OVN, from DHCP' "$(ip -n web -o -4 addr show eth0 | awk '{print $4}'), MTU $(ip netns exec web cat /sys/class/net/eth0/mtu)"
say 'db has by OVN, from DHCP' "$(ip -n db -o -4 addr show eth0 | awk '{print $4}'), MTU $(ip netns exec db cat /sys/class/net/eth0/mtu)"
start ip netns exec one tshark -l -n -i under0 -f 'udp port 6081' -Y icmp -T fields -e ip.src -e ip.dst -e geneve.vni -e icmp.type
seen=$log
until_true 20 ip netns exec web sh -c "ping -c 1 -W 1 10.0.0.12 && grep -q 172.16.0.1,10.0.0.11 $seen"
say 'tshark on the wire: geneve with ICMP inside' "$(grep -m 1 172.16.0.1,10.0.0.11 "$seen" | tr '\t' ' ')"
start ip netns exec db iperf3 -s
start ip netns exec db iperf3 -s -p 5302
until_true 10 connects 5201
row 'TCP, web to db' ip netns exec web iperf3 -c 10.0.0.12 -t 2
row 'TCP, db to web' ip netns exec web iperf3 -c 10.0.0.12 -t 2 -R
row 'UDP, 1300 bytes, web to db' ip netns exec web iperf3 -u -c 10.0.0.12 -t 1 -b 20M -l 1300

echo
until_true 10 connects 5302
nbctl --wait=hv acl-add net to-lport 1001 'outport == "db-0" && tcp.dst == 5302' drop
until_true 10 refused 5302
connects 5201
say 'with a rule of OVN, TCP to port 5302' 'dropped; to port 5201 it passes'
nbctl --wait=hv acl-del net
until_true 10 connects 5302
say 'without it' passes
ip -n web addr add 10.0.0.99/24 dev eth0
if ip netns exec web ping -c 1 -W 1 -I 10.0.0.99 10.0.0.12 >/dev/null; then echo 'failed: a foreign address passes'; exit 1; fi
say 'from an address that is not web'"'"'s' dropped

echo
vsctl one del-port br-int vif1.0
until_true 10 ip netns exec web ping -c 1 -W 1 10.0.0.12
say 'the port of web is deleted by hand' 'and back'
row 'netback of web is killed meanwhile' ip netns exec web iperf3 -c 10.0.0.12 -t 6 &
transfer=$!
sleep 2
kill -9 "$backend"
sleep 0.5
run_netback one
wait "$transfer"
up web-0
"$netback" list --dir "$out/one/xen"
"$netback" show vif1.0 --dir "$out/one/xen" | grep -E 'network|completed'
"$netback" detach web --dir "$out/one/xen" >/dev/null
until_true 5 sh -c "! ovs-vsctl --db=unix:$out/one/db.sock port-to-br vif1.0"
say 'web is detached' 'its port is gone'
