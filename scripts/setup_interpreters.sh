#!/usr/bin/env bash
# Makes an environment with NumPy in build/interpreters/3.N for each CPython from 3.9 on that is found, on PATH or
# among pyenv's, but for the one that runs the tests. What cannot be had is named and left out: the tests take
# what is there.
set -euo pipefail

cd "$(dirname "$0")/.."
folder=build/interpreters
describe='import sys; print(sys.implementation.name, "%d.%d" % sys.version_info[:2])'
ours=$("${PYTHON:-python3}" -c "$describe")
pyenv=${PYENV_ROOT:-$HOME/.pyenv}
declare -A seen=(["${ours#* }"]=1)

mkdir -p "$folder"
IFS=: read -ra places <<<"$PATH"
for python in $(find -L "${places[@]}" "$pyenv"/versions/*/bin -maxdepth 1 -name 'python3.*' -executable 2>/dev/null); do
    [[ ${python##*/} =~ ^python3\.(9|[1-9][0-9])$ ]] || continue
    # One of pyenv's shims may stand for a version that is not there.
    read -r kind version < <("$python" -c "$describe" 2>/dev/null) || continue
    [ "$kind" = cpython ] && [ -z "${seen[$version]:-}" ] || continue
    seen[$version]=1
    PYTHON=$python scripts/setup_python.sh "$folder/$version" requirements/numpy.txt 3.9 || {
        rm -rf "${folder:?}/$version"
        echo "skipped: Python models under $version" >&2
    }
done
