#!/usr/bin/env bash
# Brings the real Triton server and its load generator into build/peer, out of the packages that NVIDIA
# publishes on PyPI, and compiles our identity back end for it. Nothing outside build/ is touched.
#
#   build/peer/pytriton/tritonserver/   the server (Triton 2.51, container 24.10)
#   build/peer/nvidia_pytriton.libs/    the libraries it was linked with
#   build/peer/bin/perf_analyzer        perf_analyzer 2.40
#   build/peer/backends/identity/       libtriton_identity.so
#   build/peer/usable                   all of it is there and starts
#
# With --optional, a machine that cannot have it is no failure: one line says why.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
peer="$root/build/peer"
requirements="$root/requirements/peer.txt"

optional=${1:-}

die() {
    if [ "$optional" = --optional ]; then
        echo "skipped: the real Triton and perf_analyzer, because $*"
        exit 0
    fi
    echo "setup_peer: $*" >&2
    exit 1
}

rm -f "$peer/usable"

[ "$(uname -sm)" = "Linux x86_64" ] || die "the peer's packages are for Linux on x86-64 only"
python=${PYTHON:-python3}
"$python" -m pip --version >/dev/null 2>&1 || die "pip is missing (Debian: apt-get install python3-pip)"
command -v "${CC:-cc}" >/dev/null || die "a C compiler is missing (Debian: apt-get install gcc libc6-dev)"

mkdir -p "$peer/bin" "$peer/lib" "$peer/backends/identity"
stamp=$(cat "$requirements" "$0" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$peer/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -f "$peer/stamp"
    why=$("$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux_2_35_x86_64 --platform manylinux1_x86_64 \
        --require-hashes --dest "$peer/wheels" --requirement "$requirements" 2>&1) ||
        die "the wheels named in requirements/peer.txt could not be downloaded: ${why##*$'\n'}"
    rm -rf "$peer/pytriton" "$peer/nvidia_pytriton.libs"
    "$python" - "$peer" <<'PYTHON'
import pathlib
import shutil
import sys
import zipfile

peer = pathlib.Path(sys.argv[1])
wheels = peer / "wheels"


def unpack(wheel, prefixes):
    with zipfile.ZipFile(next(wheels.glob(wheel))) as archive:
        for name in archive.namelist():
            if name.startswith(prefixes):
                archive.extract(name, peer)


unpack("nvidia_pytriton-*.whl", ("pytriton/tritonserver/", "nvidia_pytriton.libs/"))
server = peer / "pytriton/tritonserver"
for program in [server / "bin/tritonserver", *server.glob("python_backend_stubs/*/*")]:
    program.chmod(0o755)

with zipfile.ZipFile(next(wheels.glob("tritonclient-*.whl"))) as archive:
    member = next(n for n in archive.namelist() if n.endswith("/data/bin/perf_analyzer"))
    with archive.open(member) as source, open(peer / "bin/perf_analyzer", "wb") as target:
        shutil.copyfileobj(source, target)
(peer / "bin/perf_analyzer").chmod(0o755)

# perf_analyzer wants two libraries under the names that they bear on a CUDA machine; the server's
# wheel has both.
for name, pattern in (("libb64.so.0d", "libb64-*"), ("libcudart.so.12", "libcudart-*")):
    link = peer / "lib" / name
    link.unlink(missing_ok=True)
    library = next((peer / "nvidia_pytriton.libs").glob(pattern))
    link.symlink_to(pathlib.Path("../nvidia_pytriton.libs", library.name))
PYTHON
    rm -rf "$peer/wheels"
    echo "$stamp" >"$peer/stamp"
fi

"${CC:-cc}" -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -fvisibility=hidden -shared \
    -o "$peer/backends/identity/libtriton_identity.so" "$root/benches/peer/identity_backend/identity.c"

check() {
    local missing
    missing=$(LD_LIBRARY_PATH="$peer/lib" ldd "$1" | awk '/not found/ { print $1 }')
    [ -z "$missing" ] || die "${1#"$root"/} needs libraries that this machine lacks: $missing"
    LD_LIBRARY_PATH="$peer/lib" "$1" "$2" >/dev/null 2>&1 || [ $? -lt 126 ] ||
        die "${1#"$root"/} does not start"
}
check "$peer/pytriton/tritonserver/bin/tritonserver" --help
check "$peer/bin/perf_analyzer" --version
touch "$peer/usable"
