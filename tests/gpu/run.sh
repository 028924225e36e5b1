#!/usr/bin/env bash
# What a machine with a GPU is to show, from a built binary alone:
#   tests/gpu/run.sh target/release/nereid
# Prints the machine, then the parts of the bound that lanes reach on the GPU, and on the host beside it,
# and what models of frameworks do there (python3 with numpy writes them).
# `nereid bench gpu` compares every warm-up batch with what went in, so wrong results end it.
set -euo pipefail
nereid=${1:?"which binary? usage: tests/gpu/run.sh BINARY"}

echo "== machine"
date --utc +%F
uname -srm
nvidia-smi --query-gpu=index,name,driver_version,memory.total,compute_cap --format=csv
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)

echo "== copies and execution overlapped, one GPU"
"$nereid" bench gpu --device=cuda --link-bytes-per-second=25e9 --batches=500 \
	--bytes=65536,1048576,16777216,67108864 --lanes=1,2,3,4 --models=1,2,4

if [ "$gpus" -gt 1 ]; then
	echo "== all $gpus GPUs"
	"$nereid" bench gpu --device=cuda --link-bytes-per-second=25e9 --batches=500 \
		--bytes=16777216 --lanes=3 --models=1 --devices="$gpus"
fi

echo "== many small batches: does memory stay flat?"
used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | paste -sd+ | bc; }
before=$(used)
"$nereid" bench gpu --device=cuda --batches=10000 --bytes=65536 --lanes=3 --models=1 --execute-us=20
echo "MiB in use on all GPUs before and after: $before, $(used)"

echo "== ONNX and TorchScript models end to end, of the back ends in ${NEREID_BACKEND_DIR:-the usual place}"
python3 "$(dirname "$0")/frameworks.py" "$nereid"

echo "== the host's engines and virtual time"
"$nereid" bench gpu --device=host --device=virtual

if command -v compute-sanitizer >/dev/null; then
	echo "== compute-sanitizer"
	compute-sanitizer --error-exitcode=1 "$nereid" bench gpu --device=cuda --batches=20 \
		--bytes=1048576 --lanes=3 --models=2
fi
