#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs `netback lab up --exec`, `netback lab run` and `netback lab conform` as a user with a custom kernel would; the kernel and the ramdisk are
# those of the lab's own guest. Usage: sh scripts/lab_commands.sh NETBACK
set -eu
netback=$1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
listed=$("$netback" lab up --out "$out/up" --exec 'xl list g1 && mkdir /lab/custom && cp /lab/vmlinux /lab/guest.img /lab/custom/')
echo "$listed" | grep -q '^g1 ' || { echo "lab up: xl does not list g1: $listed" >&2; exit 1; }
words='console=hvc0 quiet mitigations=off net.ifnames=0 netback.address=10.0.0.2'
"$netback" lab run --out "$out/run" --kernel "$out/up/custom/vmlinux" --initrd "$out/up/custom/guest.img" --append "$words" reconnect
"$netback" lab conform --out "$out/conform" --kernel "$out/up/custom/vmlinux" --initrd "$out/up/custom/guest.img" --append "$words" --profile queues
if "$netback" lab up --out "$out/up" </dev/null 2>"$out/message"; then echo "lab up: a directory in use was accepted" >&2; exit 1; fi
grep -q 'is not empty' "$out/message"
