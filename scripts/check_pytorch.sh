#!/usr/bin/env bash
# Formatting and lints of the library that links libtorch, which is no member of the workspace. Its lints
# need torch's headers, which `make test-pytorch` fetches.
set -euo pipefail

cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
manifest=backends/pytorch/Cargo.toml

"$cargo" fmt --all --check --manifest-path "$manifest"
if [ ! -d build/pytorch/libtorch/include ]; then
    echo "skipped: the lints of $manifest, because torch's headers are missing (make test-pytorch fetches them)"
    exit 0
fi
LIBTORCH="$PWD/build/pytorch/libtorch" CARGO_TARGET_DIR="$PWD/build/pytorch/target" \
    "$cargo" clippy --release --locked --all-targets --manifest-path "$manifest" -- --deny warnings
