#!/usr/bin/env bash
# Builds flowend as one static file (musl), for the processor that it runs on or another one. The Containerfile calls it, and
# so do the Debian package and .ci/deploy, so that all of them have the same program.
#
#   program=$(deploy/container/build.sh [x86_64|aarch64] | tail -n 1)
#
# The last line on stdout is the program's absolute path, below CARGO_TARGET_DIR or target/; everything else goes to
# stderr. Needs rustup, a C compiler and Debian's musl-tools; for aarch64 on another processor Debian's gcc-aarch64-linux-gnu
# instead (musl for it is fetched by tools/debian-arm64).

set -euo pipefail
shopt -s inherit_errexit
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

say() { printf 'deploy/container/build.sh: %s\n' "$*" >&2; }

machine=$(uname -m)
arch=${1:-$machine}
target=$arch-unknown-linux-musl
case $arch in
    x86_64 | aarch64) ;;
    *)
        say "flowend is built for x86_64 and aarch64, not for $arch"
        exit 1
        ;;
esac

# The C parts (ring, zstd) are compiled against musl's headers: glibc's would be another library's.
case $machine-$arch in
    "$arch-$arch")
        if ! command -v musl-gcc >/dev/null; then
            say "the C parts (ring, zstd) need musl-gcc; install Debian's package musl-tools"
            exit 1
        fi
        export "CC_${target//-/_}=musl-gcc"
        ;;
    x86_64-aarch64)
        gcc=aarch64-linux-gnu-gcc
        if ! command -v "$gcc" >/dev/null; then
            say "the C parts (ring, zstd) need $gcc; install Debian's package gcc-aarch64-linux-gnu"
            exit 1
        fi
        musl=$(tools/debian-arm64 musl-dev | tail -n 1)
        export CC_aarch64_unknown_linux_musl=$gcc
        own=$("$gcc" -print-file-name=include)
        export CFLAGS_aarch64_unknown_linux_musl="-nostdinc -isystem $musl/usr/include/aarch64-linux-musl -isystem $own"
        # Rust has musl's libc.a and start files; of gcc only the linker is used.
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=$gcc
        ;;
    *)
        say "on $machine flowend can be built for $machine alone; build it on a machine of the other kind"
        exit 1
        ;;
esac
if ! rustup target list --installed | grep --quiet --line-regexp "$target"; then
    rustup target add "$target" >&2
fi

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
