#!/usr/bin/env bash
# Builds flowend as one static file (musl), for the processor that it runs on. The Containerfile calls it, and so do
# the Debian package and .ci/deploy, so that all of them have the same program.
#
#   program=$(deploy/container/build.sh | tail -n 1)
#
# The last line on stdout is the program's absolute path, below CARGO_TARGET_DIR or target/; everything else goes to
# stderr. Needs rustup, a C compiler and Debian's musl-tools.

set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

say() { printf 'deploy/container/build.sh: %s\n' "$*" >&2; }

target=$(uname -m)-unknown-linux-musl
case $target in
    x86_64-* | aarch64-*) ;;
    *)
        say "flowend is built for x86_64 and aarch64; this machine is $(uname -m)"
        exit 1
        ;;
esac
if ! command -v musl-gcc >/dev/null; then
    say "the C parts (ring, zstd) need musl-gcc; install Debian's package musl-tools"
    exit 1
fi
if ! rustup target list --installed | grep --quiet --line-regexp "$target"; then
    rustup target add "$target" >&2
fi

# Without it the C parts are compiled against glibc's headers.
export "CC_${target//-/_}=musl-gcc"
# The names of functions stay, for a panic's backtrace.
export CARGO_PROFILE_RELEASE_STRIP=debuginfo
cargo build --release --locked --package flowend --bin flowend --target "$target" >&2

program=$(realpath -- "${CARGO_TARGET_DIR:-target}")/$target/release/flowend
# A library that slipped in would be missed in an image that holds nothing else.
if interpreter=$(readelf --program-headers --wide "$program" | grep INTERP) || readelf --dynamic --wide "$program" | grep NEEDED >&2; then
    say "$program is not static: it needs what is named above or an interpreter (${interpreter:-none})"
    exit 1
fi
printf '%s\n' "$program"
