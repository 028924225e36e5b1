#!/usr/bin/env bash
# Makes the back end pytorch: libtorch out of its published packages, and the library in
# backends/pytorch, which links it for the server. Nothing is built twice: build/pytorch keeps it.
#
#   scripts/build_pytorch.sh NEREID [DIRECTORY] [--optional]
#
# NEREID is the server's program, and DIRECTORY where back ends lie (its own default). With --optional,
# a machine that cannot have the back end is no failure: one line says why. One that has all it takes and
# cannot build it always is.
set -euo pipefail

cd "$(dirname "$0")/.."
nereid=$1
directory=${2:-${NEREID_BACKEND_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/nereid/backends}}
optional=${3:-}
cargo=${CARGO:-cargo}

die() {
    if [ "$optional" = --optional ]; then
        echo "skipped: the back end pytorch, because $*"
        exit 0
    fi
    echo "build_pytorch: $*" >&2
    exit 1
}

command -v "${CXX:-c++}" >/dev/null || die "a C++ compiler is missing (Debian: apt-get install g++)"
log=$("$nereid" backend install pytorch --directory "$directory" 2>&1) || die "${log##*$'\n'}"
folder="$directory/pytorch"

log=$("$cargo" fetch --locked --manifest-path backends/pytorch/Cargo.toml 2>&1) ||
    die "its crates cannot be had: ${log##*$'\n'}"

# Under one name wherever it lies, since another name would have everything compiled anew.
mkdir -p build/pytorch
ln -sfn "$(cat "$folder/LIBTORCH" 2>/dev/null || realpath "$folder")" build/pytorch/libtorch
log=$(LIBTORCH="$PWD/build/pytorch/libtorch" CARGO_TARGET_DIR="$PWD/build/pytorch/target" \
    "$cargo" build --release --locked --lib --examples --manifest-path backends/pytorch/Cargo.toml 2>&1) ||
    { echo "$log" >&2; echo "build_pytorch: its library could not be built" >&2; exit 1; }

library=build/pytorch/target/release/libnereid_pytorch.so
if ! cmp --silent "$library" "$folder/libnereid_pytorch.so"; then
    # In one step, since a server may have the old one open.
    cp "$library" "$folder/.libnereid_pytorch.so"
    mv "$folder/.libnereid_pytorch.so" "$folder/libnereid_pytorch.so"
fi
echo "the back end pytorch is in $folder"
