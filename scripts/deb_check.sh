#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# deb_check.sh PACKAGE VERSION: installs netback's package on a minimal Debian, uses, upgrades, removes and purges it. `make deb` runs
# it in a chroot of its own, without an init and, as on any machine that is no Xen domain, without the modules.
set -eu
package=$1 version=$2
export DEBIAN_FRONTEND=noninteractive
cd /root

say() { echo "-- $*"; }
fail() { echo "deb_check: $*" >&2; exit 1; }
quietly() { "$@" >/root/log 2>&1 || { cat /root/log >&2; fail "failed: $*"; }; }
has() { grep -q -- "$1" "$2" || { cat "$2" >&2; fail "$2 has no line with: $1"; }; }
until_true() {
  for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  fail "not within 10 s: $*"
}
# What of netback lies on the disk, beside the package itself and this script.
left() { find / -xdev \( -path /root -o -path /proc -o -path /sys -o -path /dev \) -prune -o -iname '*netback*' -print; }

quietly apt-get update
[ -z "$(left)" ] || fail "this machine has files of netback: $(left)"

say "install"
quietly apt-get install -y --no-install-recommends "$package"
[ "$(netback --version)" = "netback $version" ] || fail "netback --version: $(netback --version)"
netback config check

say "the C header"
[ -s /usr/include/netback/emulated_xen.h ] || fail "there is no /usr/include/netback/emulated_xen.h"
[ -s "$(netback emulate --cflags | cut -c3-)/netback/emulated_xen.h" ] || fail "netback emulate --cflags names no header"

say "links of the documentation"
python3 - <<'END' || fail "pages that are named are missing"
import re, sys
from pathlib import Path

doc = Path("/usr/share/doc/netback")
pages = [*doc.glob("docs/*.md"), *doc.glob("docs/tutorials/*.md")]
links = [(page, link) for page in pages for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s#:]+)(?:#[^)]*)?\)", page.read_text())]
missing = [f"{page}: {link}" for page, link in links if "/src/" not in link and not (page.parent / link).exists()]
sys.exit("\n".join(missing) or (0 if links else "there are no links"))
END

say "pages of the manual, and completion"
commands=$(netback --help | sed '1,/^Commands:/d' | awk '/^  [a-z]/ {print $1}')
[ -n "$commands" ] || fail "netback --help names no commands"
for name in netback $(printf 'netback-%s ' $commands); do
  [ -s "/usr/share/man/man1/$name.1.gz" ] || fail "there is no page of the manual for $name"
done
bash -c '. /usr/share/bash-completion/completions/netback && complete -p netback' >/dev/null
for file in zsh/vendor-completions/_netback fish/vendor_completions.d/netback.fish; do
  [ -s "/usr/share/$file" ] || fail "there is no /usr/share/$file"
done
COMP_WORDS='netback doc' COMP_CWORD=1 _NETBACK_COMPLETE=bash_complete netback >completed
has doctor completed

say "doctor, on a machine without the modules"
if netback doctor >doctor 2>&1; then fail "doctor finds nothing"; fi
for module in xen-evtchn xen-gntdev; do
  [ "$(grep -c "> modprobe $module" doctor)" = 1 ] || { cat doctor >&2; fail "doctor does not name $module in one line"; }
done
! grep Traceback doctor || fail "doctor has a traceback"

say "demo"
netback demo --json >demo || { cat demo >&2; fail "netback demo"; }
has '"tier"' demo
rm -f netback-demo.pcapng

say "the page"
mkdir -m 700 /run/netback
if netback web --dir /run/netback >web 2>&1; then fail "netback web needs no packages"; fi
packages=$(sed -n 's/.*apt install //p' web)
[ -n "$packages" ] || { cat web >&2; fail "netback web names no packages"; }
quietly apt-get install -y --no-install-recommends $packages
netback web --dir /run/netback --port 0 >web 2>&1 &
page=$!
until_true grep -q token= web
python3 - "$(grep -o 'http://[^ ]*' web)" <<'END' || { cat web >&2; fail "the page is not served"; }
import sys
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

page = build_opener(HTTPCookieProcessor(), ProxyHandler({})).open(sys.argv[1]).read()
sys.exit(b"<title>" not in page)
END
kill $page
wait $page || true

say "the unit"
quietly apt-get install -y --no-install-recommends kmod systemd
netback unit | diff - /usr/lib/systemd/system/netback.service
systemd-analyze verify /usr/lib/systemd/system/netback.service
netback unit --modprobe | diff - /usr/share/netback/netback-no-kernel-backend.conf
netback unit --hotplug | diff - /usr/share/netback/netback-hotplug.conf
grep -q 'deb-systemd-invoke try-restart .netback.service' /var/lib/dpkg/info/netback.postinst || fail "an upgrade restarts nothing"
[ "$(systemctl is-enabled netback)" = disabled ] || fail "the installation enabled the service"

say "the steps of README.Debian"
sed -n 's/^  \(ln -s \|mkdir -p \|systemctl enable \)/\1/p' /usr/share/doc/netback/README.Debian | sed 's/--now //' >steps
sh -eux ./steps 2>steps.log || { cat steps.log >&2; fail "a step of README.Debian"; }
block=/etc/modprobe.d/netback-no-kernel-backend.conf
links="$block /etc/systemd/system/netback.service.d/netback-hotplug.conf /etc/systemd/system/multi-user.target.wants/netback.service"
for link in $links; do
  [ -L "$link" ] && [ -e "$link" ] || fail "README.Debian makes no link $link, or one that leads nowhere"
done

say "a guest, and an upgrade while it is served"
netback emulate --dir /run/netback >emulate.log 2>&1 &
emulator=$!
until_true test -S /run/netback/xenstored.sock
netback run --platform emulated --dir /run/netback >run.log 2>&1 &
backend=$!
netback guest --platform emulated --dir /run/netback --domid 1 --name web --net null >guest.log 2>&1 &
guest=$!
until_true netback attach 1 --dir /run/netback --net null
connected() { netback list --dir /run/netback | grep -q '^vif1.0 .* Connected '; }
until_true connected
apt-get install -y --reinstall "$package" >upgrade 2>&1 || { cat upgrade >&2; fail "the upgrade failed"; }
! grep "lose their network" upgrade || fail "an upgrade says that guests lose their network"
connected || fail "the upgrade harmed the guest"

say "remove"
echo '# kept' >/etc/netback/conf.d/50-added.toml
apt-get remove -y netback >removed 2>&1 || { cat removed >&2; fail "the removal failed"; }
[ "$(grep -c 'connected and lose their network until .*: web (vif1\.0)' removed)" = 1 ] || { cat removed >&2; fail "it names no guest"; }
[ "$(grep -c "$block leads nowhere now" removed)" = 1 ] || { cat removed >&2; fail "it does not name $block"; }
for file in /etc/netback/netback.toml /etc/netback/conf.d/50-added.toml /run/netback; do
  [ -e "$file" ] || fail "the removal took $file"
done
! left | grep -E '^/usr|^/lib' || fail "the removal left these"

say "remove, while guests are connected and no backend runs"
kill -9 $backend
wait $backend 2>/dev/null || true
quietly apt-get install -y --no-install-recommends "$package"
for link in $links; do
  [ -e "$link" ] || fail "after another installation $link leads nowhere"
done
apt-get remove -y netback >removed 2>&1 || { cat removed >&2; fail "the removal failed"; }
[ "$(grep -c 'connected and have no network.* until .*: web (vif1\.0)' removed)" = 1 ] || { cat removed >&2; fail "it names no guest"; }
kill $guest $emulator
wait

say "purge"
mkdir -p /var/lib/netback && touch /var/lib/netback/web.pcapng
quietly apt-get purge -y netback
[ -z "$(left)" ] || fail "the purge left $(left)"
