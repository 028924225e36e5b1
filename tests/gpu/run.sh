#!/usr/bin/env bash
# What a machine with a GPU is to show, in one call of less than ten minutes, from a built binary:
#
#   tests/gpu/run.sh target/release/nereid           all steps, on the GPUs
#   tests/gpu/run.sh target/release/nereid copies    those steps alone
#   tests/gpu/run.sh --host target/debug/nereid      the same steps, short, on devices of the host
#   tests/gpu/run.sh --carried .gpu                  what tests/gpu/pack.sh has put there
#
# A step that fails stops no other. The last lines are a table of what was measured beside its goal; the exit
# status is 0 if every goal was met. Needs python3 with numpy.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/steps.py" "$@"
