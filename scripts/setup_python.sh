#!/usr/bin/env bash
# Makes a Python of its own in the folder VENV out of REQUIREMENTS, each package of a pinned version and
# hash. Does nothing when it is up to date already.
#
#   scripts/setup_python.sh [VENV REQUIREMENTS [OLDEST]]    (build/venv requirements/test.txt 3.11: tests and benches)
set -euo pipefail

cd "$(dirname "$0")/.."
venv=${1:-build/venv}
requirements=${2:-requirements/test.txt}
oldest=${3:-3.11}
python=${PYTHON:-python3}

die() {
    echo "setup_python: $*" >&2
    exit 1
}

command -v "$python" >/dev/null || die "$python is missing (Debian: apt-get install python3)"
"$python" -c "import sys; sys.exit(sys.version_info < (${oldest/./, }))" ||
    die "$("$python" --version) is too old: $oldest or later is needed"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "the venv module is missing (Debian: apt-get install python3-venv)"

stamp=$({ "$python" --version && cat "$requirements"; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ] || exit 0

rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --requirement "$requirements" || die "could not install $requirements"
echo "$stamp" >"$venv/stamp"
