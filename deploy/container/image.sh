#!/usr/bin/env bash
# Lays out the image's files in a folder that does not exist yet or is empty: what the Containerfile copies, and what
# .ci/deploy runs in a chroot. For another processor than this machine's the program is cross-built (build.sh).
#
#   deploy/container/image.sh FOLDER [x86_64|aarch64]

set -euo pipefail

if (($# < 1 || $# > 2)) || [[ -n $(ls -A -- "$1" 2>/dev/null) ]]; then
    echo "usage: deploy/container/image.sh FOLDER [x86_64|aarch64]: an empty folder, or one that is to be made" >&2
    exit 2
fi
mkdir -p -- "$1"
image=$(realpath -- "$1")
arch=${2:-$(uname -m)}
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

authorities=/etc/ssl/certs/ca-certificates.crt
if [[ ! -s $authorities ]]; then
    echo "deploy/container/image.sh: no $authorities; install Debian's package ca-certificates" >&2
    exit 1
fi
program=$(deploy/container/build.sh "$arch" | tail -n 1)

install -D -m 0755 -- "$program" "$image/flowend"
# Where rustls looks for them. A mount there, or otlp.ca_file, puts others in their place.
install -D -m 0644 -- "$authorities" "$image/etc/ssl/certs/ca-certificates.crt"
# So that a name is said where a user id is shown.
printf 'root:x:0:0:root:/:/flowend\n' >"$image/etc/passwd"
install -D -m 0644 -- LICENSE "$image/usr/share/licenses/flowend/LICENSE"
# What the program is made of, for scanners.
install -D -m 0644 -- "deploy/sbom/$arch.cdx.json" "$image/usr/share/doc/flowend/sbom.cdx.json"
du --summarize --bytes -- "$image" | cut -f 1 | xargs printf 'image: %s bytes\n' >&2
