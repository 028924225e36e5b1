#!/usr/bin/env bash
# Makes build/venv, the Python that tests and benches run with, out of requirements/test.txt. Does nothing
# when it is up to date already.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
venv="$root/build/venv"
requirements="$root/requirements/test.txt"
python=${PYTHON:-python3}

die() {
    echo "setup_python: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || die "$python is missing (Debian: apt-get install python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) is too old: 3.11 or later is needed"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "the venv module is missing (Debian: apt-get install python3-venv)"

stamp=$({ "$python" --version && cat "$requirements"; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --requirement "$requirements" || die "could not install requirements/test.txt"
echo "$stamp" >"$venv/stamp"
