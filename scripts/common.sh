# shellcheck shell=sh disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
# What the scripts beside it share: they source it, as root in namespaces of their own (each has the command in its head). $netback is
# the program. $out is a directory in a file system of its own: what is left is gone with the namespace.
out=/run/out
jobs=
number=0
trap 'end $?' EXIT

mount -t tmpfs run /run
mount -t tmpfs shm /dev/shm
mkdir -p /run/netns
mkdir -m 711 "$out"
ip link set lo up

end() {     # STATUS: what the programs have said, if the script failed
    if [ "$1" != 0 ]; then
        tail -n 20 "$out"/log.*
        "$netback" list || true
    fi
    for job in $jobs; do kill "$job" 2>/dev/null || true; done
}
start() {   # COMMAND...: in the background, its process in $started, its output in $log
    number=$((number + 1))
    log=$out/log.$number
    "$@" >"$log" 2>&1 </dev/null &
    started=$!
    jobs="$jobs $started"
}
until_true() {   # SECONDS COMMAND...: call it until it succeeds; fail if it does not in that time
    deadline=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$(date +%s)" -ge "$deadline" ]; then echo "failed: $*"; return 1; fi
        sleep 0.2
    done
}
row() {     # NAME COMMAND...: the rate that this iperf3 reports, or its error
    printf '%-46s' "$1"
    shift
    timeout 30 "$@" -J >"$out/json" || { echo "failed: $(cat "$out/json")"; return 1; }
    python3 -c "import json,sys; e=json.load(open(sys.argv[1]))['end']; s=e.get('sum_received') or e['sum']; \
print(f\"{s['bits_per_second']/1e6:8.0f} Mbit/s\", f\"{s.get('lost_percent', 0):.1f} % lost\" if 'lost_percent' in s else '')" "$out/json"
}
start_xen() {   # DIRECTORY: an emulated Xen, which netback's commands then find
    mkdir -m 700 "$1"
    start "$netback" emulate --dir "$1"
    until eval "$("$netback" emulate --print-env --dir "$1" 2>/dev/null)"; do sleep 0.2; done
}
start_netback() {   # ARGUMENTS...: the backend, its process in $backend
    start "$netback" run "$@"
    backend=$started
    until_true 10 "$netback" list
}
make_world() {  # up0 10.0.0.2, fd00::2, and beyond it the namespace world, 10.0.0.1, fd00::1, which has the default route
    ip netns add world
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
}
set_up() {  # NAMESPACE LINK ADDRESS...: the link with these addresses, once it is there
    until_true 10 ip -n "$1" link show "$2"
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
    namespace=$1
    link=$2
    shift 2
    for address; do
        case $address in
            *:*) ip -n "$namespace" addr add "$address" dev "$link" nodad ;;
            *) ip -n "$namespace" addr add "$address" dev "$link" ;;
        esac
    done
}
