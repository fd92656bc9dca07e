#!/bin/sh
# Boots a Debian with a real systemd in a container, installs both packages there, joins a mesh as a newcomer would, and
# watches what the units and the names do with each resolver that Debian has: restarts, crashes, `meshctl down`, purge.
#
#   packaging/systemd-check.sh [SCENARIO...]      as root, after `make deb`; all scenarios without arguments
#
# The root file systems are made once by mmdebstrap under .tools/systemd-check. Nothing of this machine is changed but
# two network namespaces and a mount, all removed at the end. On failure the journal of the container is shown.
set -eu
cd "$(dirname "$0")/.."

all="resolved networkmanager-resolved networkmanager-dnsmasq networkmanager resolvconf openresolv plain"
cache=$PWD/.tools/systemd-check
debs=$PWD/target/debian
machine=proxima-check
upstream=$machine-up
work=
leader=
step=start

say() { printf '  %s\n' "$*"; }
die() {
    printf 'packaging/systemd-check.sh: %s: %s: %s\n' "$scenario" "$step" "$*" >&2
    exit 1
}
step() {
    step=$*
    say "$step"
}

# --- The container

# inside COMMAND...: runs it in the booted container, as root.
inside() {
    nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wd \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
}

# until_true SECONDS COMMAND...: waits for a condition.
until_true() {
    deadline=$(($(date +%s) + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

clean_up() {
    status=$?
    trap - EXIT INT TERM
    if [ "$status" != 0 ] && [ -n "$leader" ]; then
        echo "--- journal of the container, and how names stand" >&2
        inside journalctl --no-pager -b -n 60 -o cat -u meshd -u coordinator -u 'meshd-names*' -u NetworkManager \
            -u systemd-resolved >&2 || true
        inside sh -c 'cat /etc/resolv.conf; meshctl dns; meshctl status; systemctl --failed --no-pager' >&2 || true
    fi
    halt
    exit "$status"
}

halt() {
    if [ -n "$leader" ]; then
        # What systemd takes as: power off now.
        kill -s RTMIN+4 "$leader" 2>/dev/null || true
        timeout 20 tail --pid="$container" -f /dev/null || kill -9 "$leader" 2>/dev/null || true
        leader=
    fi
    [ -z "${dnsmasq:-}" ] || kill "$dnsmasq" 2>/dev/null || true
    dnsmasq=
    if [ -n "$work" ]; then
        umount "$work/root" 2>/dev/null || true
        rm -rf "$work"
        work=
    fi
    ip netns del "$machine" 2>/dev/null || true
    ip netns del "$upstream" 2>/dev/null || true
}

# --- Root file systems

base() {
    [ ! -e "$cache/base.done" ] || return 0
    echo "making the root file systems, once (a Debian of some 350 MB)"
    rm -rf "$cache"
    mkdir -p "$cache"
    # Packages of the scenarios exclude each other: they are fetched here and installed into layers, without a network.
    mmdebstrap --quiet --variant=minbase --skip=cleanup/apt \
        --include=systemd-sysv,dbus,polkitd,iproute2,iputils-ping,nftables,adduser,bind9-dnsutils,curl,dnsmasq-base,ifupdown,procps \
        --customize-hook='for set in "systemd-resolved libnss-resolve" "network-manager dnsmasq-base" resolvconf openresolv; do
            chroot "$1" apt-get install --yes --quiet --quiet --no-install-recommends --download-only $set >/dev/null || exit 1
        done' \
        "$suite" "$cache/base"
    : >"$cache/base.done"
}

# layer SCENARIO: what a scenario has beside the base.
layer() {
    layer=$cache/$1
    [ ! -e "$layer.done" ] || return 0
    rm -rf "$layer"
    mkdir -p "$layer" "$work/build" "$work/new"
    mount -t overlay overlay -o "lowerdir=$cache/base,upperdir=$layer,workdir=$work/build" "$work/new"
    if ! configure "$1" "$work/new" >"$work/layer.log" 2>&1; then
        umount "$work/new"
        die "$(tail -n 20 "$work/layer.log")"
    fi
    umount "$work/new"
    : >"$layer.done"
}

# add ROOT PACKAGES...
add() {
    target=$1
    shift
    chroot "$target" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --no-download "$@"
}

# configure SCENARIO ROOT: the resolver of a scenario, set up as its documentation says.
configure() {
    new=$2
    rm -f "$new/etc/machine-id" "$new/etc/resolv.conf"
    : >"$new/etc/machine-id"
    printf 'nameserver 192.168.77.1\n' >"$new/etc/resolv.conf"
    case "$1" in
    networkmanager*)
        add "$new" network-manager dnsmasq-base || return 1
        # A container's Ethernet is a veth, which NetworkManager leaves alone unless told.
        printf '[device-eth0]\nmatch-device=interface-name:eth0\nmanaged=1\n' >"$new/etc/NetworkManager/conf.d/eth0.conf"
        printf '[connection]\nid=eth0\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=link-local\n' \
            >"$new/etc/NetworkManager/system-connections/eth0.nmconnection"
        chmod 600 "$new/etc/NetworkManager/system-connections/eth0.nmconnection"
        ;;
    resolved)
        printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >"$new/etc/systemd/network/eth0.network"
        chroot "$new" systemctl enable systemd-networkd || return 1
        ;;
    *)
        printf 'auto eth0\niface eth0 inet static\n  address 192.168.77.2/24\n  gateway 192.168.77.1\n  dns-nameservers 192.168.77.1\n' \
            >"$new/etc/network/interfaces.d/eth0"
        ;;
    esac
    case "$1" in
    resolved | networkmanager-resolved) add "$new" systemd-resolved libnss-resolve ;;
    networkmanager-dnsmasq) printf '[main]\ndns=dnsmasq\n' >"$new/etc/NetworkManager/conf.d/dns.conf" ;;
    resolvconf | openresolv) add "$new" "$1" ;;
    esac
}

# boot SCENARIO: a network with a router that gives addresses and answers names, and the container in it.
boot() {
    mkdir -p "$work/upper" "$work/scratch" "$work/root"
    mount -t overlay overlay -o "lowerdir=$cache/$1:$cache/base,upperdir=$work/upper,workdir=$work/scratch" "$work/root"
    echo newcomer >"$work/root/etc/hostname"
    mkdir -p "$work/root/debs"
    cp "$debs"/proxima_*.deb "$debs"/proxima-coordinator_*.deb "$work/root/debs/"

    ip netns add "$machine"
    ip netns add "$upstream"
    ip link add eth0 netns "$machine" type veth peer name up0 netns "$upstream"
    ip -n "$upstream" addr add 192.168.77.1/24 dev up0
    ip -n "$upstream" link set up0 up
    ip -n "$upstream" link set lo up
    # shellcheck disable=SC2086
    ip netns exec "$upstream" chroot "$cache/base" dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= \
        --user=root --no-hosts --no-resolv --interface=up0 --bind-interfaces --leasefile-ro --dhcp-authoritative \
        --dhcp-range=192.168.77.100,192.168.77.200,1h --address=/www.example.test/198.51.100.7 2>"$work/dnsmasq.log" &
    dnsmasq=$!

    power_on
}

power_on() {
    # As udev has it on a Debian, whatever the mode is here.
    [ -e "$work/tun" ] || mknod --mode=0666 "$work/tun" c 10 200
    # No host systemd is asked for anything; in the unified hierarchy units' device rules are enforced in the container.
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --boot --register=no --keep-unit --directory="$work/root" \
        --machine="$machine" --hostname=newcomer --network-namespace-path="/run/netns/$machine" --capability=CAP_NET_ADMIN --system-call-filter=bpf --bind="$work/tun:/dev/net/tun" \
        --resolv-conf=off --timezone=off --link-journal=no --console=pipe </dev/null >"$work/console.log" 2>&1 &
    container=$!
    until_true 20 find_leader || die "nspawn: $(cat "$work/console.log")"
    until_true 60 is_booted || die "systemd does not come up: $(inside systemctl list-jobs --no-pager 2>&1)"
}

find_leader() {
    leader=$(pgrep --parent "$container" --exact systemd)
}

is_booted() {
    case "$(inside systemctl is-system-running 2>/dev/null)" in
    running | degraded) ;;
    *) return 1 ;;
    esac
}

# --- What is watched

# first_v4 NAME: the first address that a plain program gets.
first_v4() {
    inside timeout 15 getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'
}

resolves() {
    [ "$(first_v4 newcomer.node.proxima)" = "$own" ] && [ "$(first_v4 ollama.proxima)" = "$service" ] &&
        inside timeout 15 getent hosts "$own" | grep -q newcomer.node.proxima
}

resolves_not() {
    [ -z "$(first_v4 newcomer.node.proxima)" ]
}

others_resolve() {
    [ "$(first_v4 www.example.test)" = 198.51.100.7 ]
}

# All ways in which a program asks.
names_work() {
    until_true "${1:-10}" resolves || die "plain programs do not resolve the mesh's names"
    others_resolve || die "plain programs do not resolve other names"
    [ "$(inside dig +short +timeout=5 newcomer.node.proxima A)" = "$own" ] || die "dig does not resolve the mesh's names"
    [ "$(inside dig +short +timeout=5 www.example.test A)" = 198.51.100.7 ] || die "dig does not resolve other names"
    code=$(inside curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' http://ollama.proxima:11434/) ||
        die "http://ollama.proxima:11434/ does not answer"
    [ "$code" = 200 ] || die "http://ollama.proxima:11434/ answers $code"
    inside meshctl status --check ready >/dev/null || die "$(inside meshctl status)"
}

names_are_out() {
    until_true 5 others_resolve || die "plain programs do not resolve other names"
    resolves_not || die "the mesh's names are still answered"
    [ "$(resolver)" = "$before" ] || die "the resolver is not as it was: $before

now: $(resolver)"
}

# All that meshd could have left in the system.
resolver() {
    inside sh -c '
        readlink /etc/resolv.conf
        cat /etc/resolv.conf
        ls /etc/NetworkManager/dnsmasq.d /etc/NetworkManager/conf.d /run/resolvconf/interface /run/resolvconf/interfaces 2>/dev/null
        ! command -v resolvectl >/dev/null || { resolvectl dns; resolvectl domain; }
        ip -brief link
        ip rule
        nft list ruleset' | sed 's/eth0@if[0-9]*/eth0/'
}

value() {
    inside systemctl show --property="$2" --value "$1"
}

# unit_is UNIT USER CAPABILITIES: it runs, as that user, with those capabilities and no others, and cannot get more.
unit_is() {
    [ "$(inside systemctl is-active "$1")" = active ] || die "$1 does not run"
    pid=$(value "$1" MainPID)
    inside cat "/proc/$pid/status" >"$work/status"
    uid=$(inside id -u "$2")
    grep -Eq "^Uid:[[:space:]]+$uid[[:space:]]+$uid[[:space:]]+$uid[[:space:]]+$uid$" "$work/status" || die "$1 is not $2's"
    for set in Inh Prm Eff Bnd Amb; do
        grep -q "^Cap$set:[[:space:]]*$3$" "$work/status" || die "$1: $(grep "^Cap" "$work/status")"
    done
    grep -Eq '^NoNewPrivs:[[:space:]]+1$' "$work/status" || die "$1 may gain privileges"
    grep -Eq '^Seccomp:[[:space:]]+2$' "$work/status" || die "$1 has no filter of system calls"
}

exposure() {
    inside systemd-analyze security --no-pager "$1" | sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p'
}

restarted() {
    # Asked at once: between two questions it may go from one state to another.
    state=$(inside systemctl show --property=ActiveState,MainPID meshd)
    case "$state" in
    "MainPID=0
"* | "MainPID=$pid
"*) return 1 ;;
    *ActiveState=active*) ;;
    *) return 1 ;;
    esac
}

join() {
    step "apt installs both packages, and their units start"
    until_true 30 others_resolve || die "the container has no network"
    before=$(resolver)
    inside sh -c 'DEBIAN_FRONTEND=noninteractive apt-get install --yes /debs/*.deb' >"$work/apt.log" 2>&1 ||
        die "$(cat "$work/apt.log")"
    until_true 10 inside systemctl is-active coordinator meshd || die "a unit did not start"
    inside systemctl is-enabled coordinator meshd >/dev/null || die "a unit is not enabled"

    step "each runs as its own user, with the capabilities of its unit and no others"
    unit_is coordinator.service proxima-coordinator 0000000000000000
    unit_is meshd.service proxima 0000000000001000
    for unit in meshd:2.0 coordinator:1.4; do
        score=$(exposure "${unit%:*}.service")
        [ "$(printf '%s\n' "$score" "${unit#*:}" | sort -n | tail -n 1)" = "${unit#*:}" ] || die "exposure of $unit: $score"
    done
    # The rules for devices are real here, so that they are part of what is watched.
    ! inside systemd-run --quiet --collect --pipe --wait --property=DevicePolicy=closed head -c 0 /dev/net/tun 2>/dev/null ||
        die "device rules are not enforced in this container"

    step "a newcomer joins with the key from the coordinator's journal"
    until_true 10 inside sh -c 'journalctl -u coordinator -o cat | grep -q pxk_' || die "no auth key in the journal"
    inside sh -c 'journalctl -u coordinator -o cat | grep -o "pxk_[A-Za-z0-9_-]*" | head -n 1 >/root/key'
    inside meshctl up --auth-key file:/root/key || die "$(inside meshctl status)"
    inside coordinator node list | grep -q newcomer || die "the coordinator does not list the node"
    own=$(inside ip -4 -oneline addr show proxima0 | awk '{ sub("/.*", "", $4); print $4 }')
    service=$(echo "$own" | cut -d. -f1,2).0.53
    [ -n "$own" ] || die "proxima0 has no address"

    step "the gateway's threads, and they alone, are scheduled for many and have more than the usual share of a core"
    pid=$(value meshd.service MainPID)
    inside sh -c "cat /proc/$pid/task/*/stat" >"$work/threads"
    niceness=-4
    # A machine whose root may not raise limits has its containers' units do without.
    inside grep -Eq '^Max nice priority +24 ' "/proc/$pid/limits" || niceness=0
    # The 19th field is the niceness, the 41st the policy: 3 is SCHED_BATCH.
    awk -v niceness="$niceness" '/\(gateway-/ { n++; if ($19 != niceness || $41 != 3) wrong = 1; next }
        $19 != 0 || $41 != 0 { wrong = 1 }
        END { exit wrong || !n }' "$work/threads" || die "niceness and policy: $(cut -d " " -f 2,19,41 "$work/threads")"
}

# wired MANAGER: names are in, and come back after what happens to a machine.
wired() {
    step "names resolve through $1"
    names_work
    inside meshctl dns | grep -q "set up through $1" || die "$(inside meshctl dns)"

    for unit in $2; do
        step "names resolve after a restart of $unit"
        inside systemctl restart "$unit"
        names_work 20
    done

    step "names resolve again after kill -9 of meshd, which systemd starts anew"
    pid=$(value meshd MainPID)
    inside systemctl kill --signal=KILL meshd
    until_true 15 restarted || die "systemd did not start meshd anew"
    names_work 15

    step "meshctl down takes them out, meshctl up puts them in"
    inside meshctl down >/dev/null
    names_are_out
    inside meshctl up >/dev/null
    names_work

    step "systemctl stop takes them out, systemctl start puts them in"
    inside systemctl stop meshd
    names_are_out
    [ "$(inside systemctl is-active meshd-names.socket)" = inactive ] || die "the socket of meshd-names stays"
    inside systemctl start meshd
    names_work 15

    step "meshctl set dns=off and dns=on do the same"
    inside meshctl set dns=off >/dev/null
    until_true 5 resolves_not || die "the mesh's names are still answered"
    others_resolve || die "plain programs do not resolve other names"
    inside meshctl set dns=on >/dev/null
    names_work

    step "a meshd that is killed and stays away leaves nothing behind"
    inside sh -c 'mkdir -p /run/systemd/system/meshd.service.d
        printf "[Service]\nRestart=no\n" >/run/systemd/system/meshd.service.d/check.conf
        systemctl daemon-reload
        systemctl kill --signal=KILL meshd'
    until_true 10 inside sh -c '[ "$(systemctl is-active meshd)" = failed ]' || die "meshd is $(inside systemctl is-active meshd)"
    names_are_out
    inside sh -c 'rm -r /run/systemd/system/meshd.service.d; systemctl daemon-reload; systemctl reset-failed meshd; systemctl start meshd'
    names_work
}

reboot_it() {
    step "the node and the coordinator are back by themselves after a reboot"
    inside systemctl --no-block reboot
    # What nspawn ends with when its container wants to boot again, and it is no host systemd's unit.
    reboots=0
    wait "$container" || reboots=$?
    [ "$reboots" = 133 ] || die "the container does not boot again: $(cat "$work/console.log")"
    power_on
    names_work 30
}

purge() {
    step "purge leaves nothing"
    inside sh -c 'DEBIAN_FRONTEND=noninteractive apt-get purge --yes proxima proxima-coordinator' >"$work/apt.log" 2>&1 ||
        die "$(cat "$work/apt.log")"
    names_are_out
    left=$(inside sh -c 'for path in /run/proxima /run/meshd-names.sock /var/lib/proxima /var/lib/proxima-coordinator /etc/proxima \
            /usr/bin/meshd /usr/bin/meshctl /usr/bin/coordinator; do [ ! -e $path ] || echo $path; done
        getent passwd proxima proxima-coordinator; getent group proxima proxima-coordinator
        find /etc/systemd /run/systemd/system /usr/lib/systemd /usr/share/polkit-1 -name "*meshd*" -o -name "*proxima*" -o -name "coordinator.service"
        systemctl list-units --all --plain --no-legend "meshd*" "coordinator*"
        systemctl list-units --failed --plain --no-legend
        ps -e -o comm= | grep -E "^(meshd|coordinator|meshctl)$" || true')
    [ -z "$left" ] || die "left behind: $left"
}

# told PATTERN: meshd cannot wire names in here; it says so, and what it says helps.
told() {
    step "meshctl says that names are not wired in, and what to do"
    until_true 10 sh -c '! nsenter --target '"$leader"' --all meshctl status | grep -q "being told"' || true
    inside meshctl dns >"$work/hint" && die "meshctl dns claims that names are wired in"
    grep -q "$1" "$work/hint" || die "$(cat "$work/hint")"
    inside meshctl status | grep -q 'meshctl dns' || die "meshctl status says nothing of names"
    resolves_not || die "names resolve all the same"
    others_resolve || die "plain programs do not resolve other names"
}

watch_scenario() {
    case "$1" in
    resolved)
        # A systemd-resolved that lost its bus does not look for another: it is away until it is restarted too.
        wired systemd-resolved 'dbus systemd-resolved systemd-networkd'
        reboot_it
        ;;
    networkmanager-resolved) wired systemd-resolved 'NetworkManager systemd-resolved' ;;
    networkmanager-dnsmasq) wired NetworkManager NetworkManager ;;
    resolvconf | openresolv) wired resolvconf networking ;;
    networkmanager)
        told 'NetworkManager'
        step "what it says is done, word for word, and names resolve"
        sed -n '/^ *printf /,/^ *systemctl /s/^ *//p' "$work/hint" >"$work/root/do.sh"
        inside sh -ex /do.sh
        names_work 30
        inside rm /etc/NetworkManager/conf.d/dns.conf
        inside systemctl reload NetworkManager
        ;;
    plain)
        told 'nameserver'
        step "what it says is done, word for word, and names resolve"
        line=$(sed -n 's/.*before all others: *\(nameserver .*\)$/\1/p' "$work/hint")
        inside sed -i "1i $line" /etc/resolv.conf
        names_work
        inside meshctl dns | grep -q 'set up by hand' || die "$(inside meshctl dns)"
        inside sed -i 1d /etc/resolv.conf
        ;;
    esac
}

[ "$(id -u)" = 0 ] || { echo "packaging/systemd-check.sh needs root" >&2; exit 1; }
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
scenario=preparation
trap clean_up EXIT
trap 'exit 1' INT TERM
base
for scenario in ${*:-$all}; do
    work=$(mktemp -d)
    layer "$scenario"
    halt
done
ls "$debs"/proxima_*.deb "$debs"/proxima-coordinator_*.deb >/dev/null || die "no packages: run make deb"
for scenario in ${*:-$all}; do
    echo "$scenario"
    work=$(mktemp -d)
    boot "$scenario"
    join
    watch_scenario "$scenario"
    purge
    halt
done
echo "the units and the names hold under systemd: ${*:-$all}"
