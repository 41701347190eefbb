# SPDX-License-Identifier: Apache-2.0
# TCP hangs while ping works, between two Linux TCP/IP stacks: the guest's driver takes no frame larger than a page, and
# an operator has set both ends to an MTU of 9000. `netback explain` names the cause, and what it says to do ends it.
# Run by tests/cli/test_explain.py, in a mount namespace of its own. Arguments: a directory, and the TCP program.
set -eu
xen=$1 talk=$2
export XENSTORED_PATH="$xen/xenstored.sock"
trap 'kill $(jobs -p) 2>/dev/null; wait; ip netns del host; ip netns del guest' EXIT

await() { # until a command succeeds; the test has a time limit
    until "$@" > /dev/null 2>&1; do sleep 0.05; done
}

says() { # whether the explanation has this rule
    netback explain vif1.0 --seconds 0.1 > "$xen/said"
    grep -q -F "[$1]" "$xen/said"
}

connected() {
    netback list | grep -q '^vif1.0.* Connected '
}

mkdir -p "$xen"
chmod 700 "$xen"
netback emulate --dir "$xen" &
ip netns add host
ip netns add guest
ip -n host link add e0 mtu 9000 type veth peer name far0 mtu 9000
ip -n host link set e0 up
ip -n host addr add 192.0.2.1/24 dev far0
ip -n host link set far0 up
await test -S "$XENSTORED_PATH"
ip netns exec host netback run &
ip netns exec guest netback guest --like mini-os --domid 1 --net tap:eth0 &
await netback attach 1 --net packet:e0
await connected
ip -n guest addr add 192.0.2.2/24 dev eth0
ip -n guest link set eth0 mtu 9000 up
ip netns exec host ping -c 1 -w 20 192.0.2.2

ip netns exec guest python3 "$talk" receive 192.0.2.2 &
receiver=$!
ip netns exec host python3 "$talk" send 192.0.2.2 &
await says too-big
ip netns exec host ping -c 1 -w 20 192.0.2.2
cat "$xen/said"

ip -n host link set far0 mtu 1500
ip -n host link set e0 mtu 1500
wait $receiver
echo 'TCP goes on'
