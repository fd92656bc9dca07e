#!/bin/sh
# Runs nebula for vpnbench.py: side A makes a certificate authority and both certificates, with nebula-cert.
set -eu
cd "$VB_DIR"
if [ "$1" = A ]; then
    nebula-cert ca -name bench
    nebula-cert sign -name A -ip "$VB_INNER_SELF/$VB_PREFIX"
    nebula-cert sign -name B -ip "$VB_INNER_PEER/$VB_PREFIX"
    touch signed
fi
n_tries=0
until [ -e signed ]; do
    n_tries=$((n_tries + 1))
    [ $n_tries -lt 500 ] || { echo "side A made no certificates" >&2; exit 1; }
    sleep 0.01
done
cat >"nebula.$1.yml" <<YML
pki: { ca: $VB_DIR/ca.crt, cert: $VB_DIR/$1.crt, key: $VB_DIR/$1.key }
static_host_map: { "$VB_INNER_PEER": ["$VB_OUTER_PEER:$VB_PORT"] }
lighthouse: { am_lighthouse: false, hosts: [] }
listen: { host: 0.0.0.0, port: $VB_PORT }
tun: { dev: $VB_IF, mtu: $VB_MTU }
firewall:
  outbound: [{ port: any, proto: any, host: any }]
  inbound: [{ port: any, proto: any, host: any }]
logging: { level: warning }
YML
exec nebula -config "nebula.$1.yml"
