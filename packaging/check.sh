#!/bin/sh
# Installs both Debian packages, joins a mesh of one in a network namespace, purges them, and looks for leftovers.
# As root, on a machine that has neither installed: packaging/check.sh target/debian/*.deb
set -eu

netns=proxima-check
work=$(mktemp -d)
inside() { timeout 60 ip netns exec "$netns" "$@"; }
die() {
    echo "packaging/check.sh: $*" >&2
    exit 1
}
clean_up() {
    dpkg --purge proxima proxima-coordinator >/dev/null 2>&1 || true
    ip netns del "$netns" 2>/dev/null || true
    rm -rf "$work"
}

[ "$(id -u)" = 0 ] || die "needs root"
[ ! -d /run/systemd/system ] || die "is for machines without a running systemd, such as CI's containers"
! dpkg-query -W proxima proxima-coordinator >/dev/null 2>&1 || die "the packages are installed already"
trap clean_up EXIT INT TERM

export DEBIAN_FRONTEND=noninteractive
dpkg --install "$@" >"$work/dpkg.log" || die "$(cat "$work/dpkg.log")"
for user in proxima proxima-coordinator; do
    getent passwd "$user" >/dev/null || die "there is no user $user"
done

ip netns add "$netns"
ip -n "$netns" link set lo up

# As the units run them: own users, one capability for the node, none for the coordinator.
install -d -m 700 -o proxima-coordinator -g proxima-coordinator /var/lib/proxima-coordinator
install -d -m 700 -o proxima -g proxima /var/lib/proxima
install -d -m 755 -o proxima -g proxima /run/proxima
ip netns exec "$netns" setpriv --reuid proxima-coordinator --regid proxima-coordinator --clear-groups --no-new-privs \
    --inh-caps=-all --bounding-set=-all \
    coordinator serve --config /etc/proxima/coordinator.toml --listen 127.0.0.1:7443 --url https://127.0.0.1:7443 \
    >"$work/coordinator.log" 2>&1 &
ip netns exec "$netns" setpriv --reuid proxima --regid proxima --clear-groups --no-new-privs \
    --inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin \
    meshd >"$work/meshd.log" 2>&1 &

tries=0
until grep -q 'pxk_' "$work/coordinator.log" && [ -S /run/proxima/meshd.sock ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || die "did not start: $(cat "$work/coordinator.log" "$work/meshd.log")"
    sleep 0.1
done
grep -o 'pxk_[A-Za-z0-9_-]*' "$work/coordinator.log" | head -1 >"$work/key"
inside meshctl up --auth-key "file:$work/key" || die "$(cat "$work/meshd.log")"
inside meshctl status --check ready
[ "$(stat -c '%a %G' /run/proxima/meshd.sock)" = "660 proxima" ] || die "the control socket has the wrong mode"

dpkg --purge proxima proxima-coordinator >"$work/dpkg.log" || die "$(cat "$work/dpkg.log")"
wait
for left in /run/proxima /var/lib/proxima /var/lib/proxima-coordinator /etc/proxima /usr/bin/meshd /usr/bin/meshctl; do
    [ ! -e "$left" ] || die "left behind: $left"
done
for user in proxima proxima-coordinator; do
    ! getent passwd "$user" >/dev/null || die "left behind: user $user"
    ! getent group "$user" >/dev/null || die "left behind: group $user"
done
[ -z "$(inside nft list ruleset 2>/dev/null)" ] || die "left behind: packet rules"
inside ip -brief link | grep -q proxima0 && die "left behind: the interface"
echo "the packages install, start and purge cleanly"
