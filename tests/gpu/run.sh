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

echo "== CUDA shared memory from a second process"
folder=$(mktemp -d)
trap 'rm -rf "$folder"; [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true' EXIT
mkdir -p "$folder/models/softmax/1"
cat >"$folder/models/softmax/config.pbtxt" <<'END'
backend: "ops" max_batch_size: 64 dynamic_batching {}
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [ 150528 ] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 150528 ] }]
parameters { key: "chain" value: { string_value: "[{\"op\": \"softmax\"}]" } }
END
"$nereid" --model-repository="$folder/models" --allow-client-shm=true --http-address=127.0.0.1 \
	--http-port=18000 --grpc-address=127.0.0.1 --grpc-port=18001 --allow-metrics=false 2>"$folder/log" &
server=$!
for _ in $(seq 300); do
	if "$nereid" bench -m softmax -u 127.0.0.1:18001 -i grpc -p 200 -r 1 --quiet 2>/dev/null; then break; fi
	kill -0 "$server" || { cat "$folder/log"; exit 1; }
	sleep 0.2
done
for way in grpc shm cuda-shm; do
	"$nereid" bench -m softmax -u 127.0.0.1:18001 --via "$way" --output-shared-memory-size 602112 \
		--concurrency-range 1:16:15
done
kill "$server"; wait "$server" || true; server=
# Right results, by clients in Python that ask the driver for memory, where their packages are there.
if python3 -c 'import pytest, numpy, tritonclient.grpc, tritonclient.http' 2>/dev/null; then
	NEREID_TEST_GPU=1 NEREID=$nereid python3 -m pytest -q tests/clients/test_cuda_shared_memory.py -k gpu
else
	echo "not checked: pytest, numpy and tritonclient[all] are not there"
fi
echo "== ONNX and TorchScript models end to end, of the back ends in ${NEREID_BACKEND_DIR:-the usual place}"
python3 "$(dirname "$0")/frameworks.py" "$nereid"

echo "== TorchScript, with the torch that is installed here"
torch=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)' 2>/dev/null || true)
library=$(dirname "$nereid")/libnereid_pytorch.so
[ -f "$library" ] || library=${NEREID_BACKEND_DIR:-$HOME/.local/share/nereid/backends}/pytorch/libnereid_pytorch.so
if [ -z "$torch" ]; then
	echo "not checked: python3 has no torch"
elif [ ! -f "$library" ]; then
	echo "not checked: there is no libnereid_pytorch.so beside $nereid or among the back ends (make backend-pytorch)"
elif ! python3 -c 'import pytest, numpy, tritonclient.grpc, tritonclient.http' 2>/dev/null; then
	echo "not checked: pytest, numpy and tritonclient[all] are not there"
else
	"$nereid" backend install pytorch --directory "$folder/backends" --from "$torch"
	cp "$library" "$folder/backends/pytorch/"
	NEREID_TEST_GPU=1 NEREID=$nereid NEREID_BACKEND_DIR=$folder/backends python3 -m pytest -q \
		-p no:cacheprovider tests/clients/test_torch.py tests/clients/test_torch_settings.py
fi

echo "== the host's engines and virtual time"
"$nereid" bench gpu --device=host --device=virtual

if command -v compute-sanitizer >/dev/null; then
	echo "== compute-sanitizer"
	compute-sanitizer --error-exitcode=1 "$nereid" bench gpu --device=cuda --batches=20 \
		--bytes=1048576 --lanes=3 --models=2
fi
