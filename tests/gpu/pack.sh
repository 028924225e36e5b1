#!/usr/bin/env bash
# Gathers into build/gpu what tests/gpu/run.sh needs on a machine where nothing can be built or fetched:
#
#   tests/gpu/pack.sh                  the program and the tests of the kernels, with the kernels in them, and the
#                                      library that links torch, where torch can be had
#   tests/gpu/pack.sh --onnxruntime    and ONNX Runtime for GPUs, in parts of at most 56 MiB, in build/gpu-parts
#
# There, with build/gpu at its place in a copy of this repository:
#
#   tests/gpu/run.sh --carried build/gpu
#
# A machine that takes so much at a time gets the parts one by one, into one folder; then
#
#   cat FOLDER/onnxruntime.* | tar -xJ -C SOMEWHERE && NEREID_BACKEND_DIR=SOMEWHERE tests/gpu/run.sh ...
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
folder=build/gpu
parts=build/gpu-parts
part_mib_max=56

scripts/setup_cuda.sh
[ -n "${CUDA_HOME:-}" ] || [ -x build/cuda/nvidia/cu13/bin/nvcc ] || {
	echo "pack: there is no nvcc, so the program would have no kernels" >&2
	exit 1
}
cargo=${CARGO:-cargo}
"$cargo" build --release --locked
tests=$("$cargo" test --release --locked --test kernels --no-run --message-format=json |
	python3 -c 'import json, sys; print([it["executable"] for it in map(json.loads, sys.stdin) if it.get("executable") and it["target"]["name"] == "kernels"][-1])')

rm -rf "$folder"
mkdir -p "$folder"
pack() {
	strip -o "$folder/$2" "$1"
	xz -T0 -6 "$folder/$2"
}
pack target/release/nereid nereid
pack "$tests" kernels-test
scripts/build_pytorch.sh target/release/nereid build/backends --optional
[ ! -f build/backends/pytorch/libnereid_pytorch.so ] || cp build/backends/pytorch/libnereid_pytorch.so "$folder/"
size=$(du -sm "$folder" | cut -f1)
echo "$folder has $size MiB:"
ls -l "$folder"
[ "$size" -le "$part_mib_max" ] || echo "pack: that is more than the $part_mib_max MiB of a part" >&2

if [ "${1:-}" = --onnxruntime ]; then
	backends=build/backends-gpu
	target/release/nereid backend install onnxruntime --gpu --directory "$backends"
	rm -rf "$parts"
	mkdir -p "$parts"
	tar -cJ -C "$backends" onnxruntime | split -b "${part_mib_max}M" -d - "$parts/onnxruntime."
	ls -l "$parts"
fi
