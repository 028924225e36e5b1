#!/usr/bin/env bash
# Says plainly which tools are missing and how to get them; does nothing else.
#
#   scripts/require.sh rust cc python fuzz ...
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
missing=0

lacks() {
    echo "missing: $1" >&2
    echo "    $2" >&2
    missing=1
}

# Whether version $1 is at least $2.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

rust() {
    local wanted got
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
    if ! command -v cargo >/dev/null; then
        lacks "Rust $wanted or later" "https://rustup.rs installs it"
        return
    fi
    got=$(cargo --version | cut -d' ' -f2)
    at_least "${got%%-*}" "$wanted" ||
        lacks "Rust $wanted or later; this is $got" "rustup update stable"
}

component() {
    cargo "$1" --version >/dev/null 2>&1 || lacks "cargo $1" "rustup component add $2"
}

cc() {
    command -v "${CC:-cc}" >/dev/null ||
        lacks "a C compiler" "Debian, Ubuntu: apt-get install gcc libc6-dev"
}

cxx() {
    command -v "${CXX:-c++}" >/dev/null ||
        lacks "a C++ compiler" "Debian, Ubuntu: apt-get install g++"
}

python() {
    if ! command -v "$python" >/dev/null; then
        lacks "Python 3.11 or later" "Debian, Ubuntu: apt-get install python3 python3-venv python3-pip"
        return
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        lacks "Python 3.11 or later; $python is $("$python" --version)" \
            "name a newer one: make PYTHON=python3.11 ..."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        lacks "Python's venv module" "Debian, Ubuntu: apt-get install python3-venv"
    "$python" -m pip --version >/dev/null 2>&1 ||
        lacks "pip for $python" "Debian, Ubuntu: apt-get install python3-pip"
}

for tool in "$@"; do
    case $tool in
        rust | cc | cxx | python) "$tool" ;;
        fmt) component fmt rustfmt ;;
        clippy) component clippy clippy ;;
        nightly)
            cargo +nightly --version >/dev/null 2>&1 ||
                lacks "a nightly compiler of Rust, which fuzzing needs" "rustup toolchain install nightly"
            ;;
        cargo-deny | cargo-fuzz | mdbook) command -v "$tool" >/dev/null || lacks "$tool" "make tools" ;;
        *)
            echo "require.sh: '$tool' is not a tool it knows" >&2
            exit 2
            ;;
    esac
done
exit "$missing"
