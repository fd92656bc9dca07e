#!/bin/sh
# Makes completions and manual pages out of the built programs: packaging/assets.sh PROGRAMS-DIR TARGET-DIR
set -eu

programs=$1
target=$2
rm -rf "$target"
mkdir -p "$target/man"

for program in meshctl coordinator; do
    [ -x "$programs/$program" ] || continue
    for shell in bash zsh fish; do
        mkdir -p "$target/$shell"
    done
    "$programs/$program" completions bash >"$target/bash/$program"
    "$programs/$program" completions zsh >"$target/zsh/_$program"
    "$programs/$program" completions fish >"$target/fish/$program.fish"
done
"$programs/meshctl" man --output "$target/man"
if [ -x "$programs/coordinator" ]; then
    "$programs/coordinator" man >"$target/man/coordinator.1"
fi
