# shellcheck shell=bash
# For collector/build and backends/build, which source it: builds a Go program once, into the user's cache folder.
#
# Go modules come from where `go env GOPROXY` says, and are verified as `go env GOSUMDB` says.

# Also in $(...), where it is off otherwise.
shopt -s inherit_errexit

# What the messages begin with: the script as its user knows it, collector/build.
SCRIPT=$(basename -- "$(dirname -- "$0")")/$(basename -- "$0")

say() { printf '%s: %s\n' "$SCRIPT" "$*" >&2; }

# Runs a command that downloads, up to five times.
retry() {
    local attempt
    for attempt in 1 2 3 4 5; do
        "$@" && return
        ((attempt == 5)) && break
        say "attempt $attempt of 5 failed; again in $((attempt * 5)) s: ${1##*/} ${*:2}"
        sleep "$((attempt * 5))"
    done
    say "given up: ${1##*/} ${*:2}"
    return 1
}

# need_go VERSION: fails, and says what to do, if no Go from VERSION (1.25, 1.26.5) on is to be had. Sets go_version, for
# the current folder: a go.mod or go.work there may ask for another toolchain.
need_go() {
    export GOWORK=off
    local remedy="Install Debian's 'golang' package (if it is recent enough), or Go from go.dev"
    if ! command -v go >/dev/null; then
        say "Go $1 or later is needed, and there is no 'go' in PATH. $remedy, and try again."
        exit 1
    fi
    # Where a go.mod asks for more than this Go can be or fetch, go itself says so and fails.
    if ! go_version=$(go version); then
        say "Go $1 or later is needed. $remedy, or set GOTOOLCHAIN=auto, with which Go 1.21 and later fetch it."
        exit 1
    fi
    # Go 1.21 and later fetch the toolchain a module asks for, unless GOTOOLCHAIN says not to.
    if [[ $go_version =~ go(1\.[0-9.]+) ]] && older "${BASH_REMATCH[1]}" "$1" &&
        { older "${BASH_REMATCH[1]}" 1.21 || [[ $(go env GOTOOLCHAIN) == local* ]]; }; then
        say "Go $1 or later is needed; this is '$go_version'. $remedy, or set GOTOOLCHAIN=auto."
        exit 1
    fi
}

older() { [[ $1 != "$2" && $(printf '%s\n' "$1" "$2" | sort --version-sort | head -n 1) == "$1" ]]; }

# cached NAME BUILD CHECK... <INPUTS: prints the path of the program NAME, which BUILD builds if it is not in the cache yet.
#
# INPUTS on stdin: all that the binary depends on, as text; another text is another folder of the cache.
# BUILD: a function that leaves the binary in $work/NAME. It runs in a subshell, in the caller's folder; $work is a new
# folder, which is removed afterwards; what it writes goes to stderr.
# CHECK...: the arguments with which the binary, if it is a good one, ends with status 0.
cached() {
    local name=$1 build=$2 check=("${@:3}") cache_home=${XDG_CACHE_HOME:-} key cache binary
    key=$(sha256sum | cut -c 1-16)
    # A relative XDG_CACHE_HOME is to be ignored, says its specification.
    [[ $cache_home == /* ]] || cache_home=$HOME/.cache
    cache=$cache_home/flowend/$name-$key
    binary=$cache/$name

    if ! works "$binary"; then
        mkdir -p -- "$cache"
        # One build at a time: another one may be under way, and then there is nothing left to do.
        exec 9>"$cache/lock"
        flock 9
        if works "$binary"; then
            say "$name: built meanwhile"
        else
            say "$name: building with '$go_version' into $cache"
            # A subshell, for its EXIT trap, environment and working folder. It does not inherit the lock,
            # so that no process that outlives it can hold it.
            (build_into "$cache") >&2 9>&-
            say "$name: done"
        fi
        exec 9>&-
    fi
    printf '%s\n' "$binary"
}

# With name, build and check of `cached`.
works() { [[ -x $1 ]] && "$1" "${check[@]}" >/dev/null 2>&1; }

build_into() {
    # What interrupted builds left here. Nobody else builds: we hold the lock.
    rm -rf -- "$1"/build.*
    work=$(mktemp -d "$1/build.XXXXXX")
    trap 'rm -rf -- "$work"' EXIT
    mkdir "$work/tmp"

    # What builders leave in TMPDIR goes with the rest.
    export TMPDIR=$work/tmp
    # Not the user's flags: -mod=vendor and the like cannot work here. And no version-control stamp, for
    # which the build would fail where the folder is in a repository that git refuses to read.
    export GOFLAGS=-buildvcs=false
    export CGO_ENABLED=0
    # The binary is to run here.
    unset GOOS GOARCH GOBIN

    "$build"

    # Tried before it is moved, so that a binary in place is one that runs.
    if ! "$work/$name" "${check[@]}" >"$work/check" 2>&1; then
        say "$name: what was built does not run: $name ${check[*]}:"
        cat -- "$work/check"
        exit 1
    fi
    mv -f -- "$work/$name" "$1/$name"
}
