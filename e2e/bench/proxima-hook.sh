#!/bin/sh
# Runs our own programs for vpnbench.py: C a coordinator, A and B a node each. PROXIMA_BIN is the folder of the programs.
set -eu
url=https://172.31.88.1:7443
case $1 in
C)
    exec "$PROXIMA_BIN/coordinator" serve --state-dir "$VB_DIR/coordinator" --listen 172.31.88.1:7443 --url $url
    ;;
A | B)
    printf 'mtu = %s\n' "$VB_MTU" >"$VB_DIR/meshd.$1.toml"
    "$PROXIMA_BIN/meshd" --config "$VB_DIR/meshd.$1.toml" --state-dir "$VB_DIR/node.$1" --socket "$VB_DIR/$1.sock" --interface "$VB_IF" --no-dns &
    meshd=$!
    until "$PROXIMA_BIN/coordinator" key create --socket "$VB_DIR/coordinator/coordinator.sock" --json >"$VB_DIR/key.$1" 2>/dev/null; do
        sleep 0.05
    done
    key=$(sed 's/.*"key": *"\([^"]*\)".*/\1/' "$VB_DIR/key.$1" | tr -d '\n' | grep -o 'pxk_[A-Za-z0-9_-]*')
    until "$PROXIMA_BIN/meshctl" --socket "$VB_DIR/$1.sock" up --hostname "node-$1" --auth-key "$key"; do
        sleep 0.1
    done
    ip -4 -o address show dev "$VB_IF" | awk '{ split($4, part, "/"); print part[1] }' >"$VB_DIR/addr.$1.part"
    mv "$VB_DIR/addr.$1.part" "$VB_DIR/addr.$1"
    wait $meshd
    ;;
esac
