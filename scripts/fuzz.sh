#!/usr/bin/env bash
# Fuzzes each target of fuzz/ for FUZZ_SECONDS (60), from its seeds and what earlier runs have found.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

for target in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    echo "--- $name, $seconds s"
    mkdir -p "fuzz/corpus/$name" "fuzz/seeds/$name"
    cargo +nightly fuzz run "$name" "fuzz/corpus/$name" "fuzz/seeds/$name" -- \
        -max_total_time="$seconds" -rss_limit_mb=4096 -print_final_stats=1
done
