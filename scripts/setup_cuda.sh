#!/usr/bin/env bash
# Brings nvcc and NVRTC into build/cuda, out of the packages named in requirements/cuda.txt. Nothing else
# is touched; `cargo build` finds the compiler there and embeds the kernels. Does nothing when it is there
# already, or when CUDA_HOME names a toolkit.
#
# With --optional, a machine that cannot have it is no failure: one line says why.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cuda="$root/build/cuda"
requirements="$root/requirements/cuda.txt"
python=${PYTHON:-python3}
optional=${1:-}

die() {
    if [ "$optional" = --optional ]; then
        echo "skipped: the CUDA compiler, because $*"
        exit 0
    fi
    echo "setup_cuda: $*" >&2
    exit 1
}

[ -z "${CUDA_HOME:-}" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || die "the packages are for Linux on x86-64 only; CUDA_HOME can name a toolkit"
"$python" -m pip --version >/dev/null 2>&1 || die "pip is missing (Debian: apt-get install python3-pip)"

stamp=$(sha256sum <"$requirements" | cut -d' ' -f1)
[ "$(cat "$cuda/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

rm -rf "$cuda"
why=$("$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
    --only-binary=:all: --require-hashes --target "$cuda" --requirement "$requirements" 2>&1) ||
    die "the packages named in requirements/cuda.txt could not be installed: ${why##*$'\n'}"
echo "$stamp" >"$cuda/stamp"
