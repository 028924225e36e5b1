#!/usr/bin/env bash
# Runs make targets one after the other, stops at the first that fails, and ends with a summary.
#
#   scripts/stages.sh check test-unit ...
set -uo pipefail

cd "$(dirname "$0")/.."
summary=()
began_all=$SECONDS

finish() {
    echo
    printf '%s\n' "${summary[@]}"
    echo "$1 ($((SECONDS - began_all)) s)"
}

for stage in "$@"; do
    echo
    echo "=== $stage"
    began=$SECONDS
    "${MAKE:-make}" --no-print-directory "$stage"
    status=$?
    line=$(printf '%-20s %5d s' "$stage" $((SECONDS - began)))
    if [ "$status" -ne 0 ]; then
        summary+=("$line  FAILED")
        finish "make $stage failed; what comes after it was not run"
        exit 1
    fi
    summary+=("$line  passed")
done
finish "all passed"
