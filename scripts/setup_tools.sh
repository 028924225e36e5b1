#!/usr/bin/env bash
# Installs the tools of requirements/tools.txt into build/tools, as far as they are not there in that version.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)

while read -r tool; do
    # Cargo itself leaves alone what is installed under this root in the version asked for.
    cargo install --quiet --locked --root "$root/build/tools" "$tool" </dev/null || {
        echo "setup_tools: could not install $tool" >&2
        exit 1
    }
done < <(grep -v '^#' "$root/requirements/tools.txt")

# Azurite stands in for Azure's store in tests/clients; they do without it where it is not.
if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --omit=dev --omit=optional --prefix "$root/build/tools/azurite" \
        azurite@3.37.0 </dev/null || {
        echo "setup_tools: could not install azurite" >&2
        exit 1
    }
    ln -sf ../azurite/node_modules/.bin/azurite-blob "$root/build/tools/bin/azurite-blob"
else
    echo "skipped: azurite, because npm is missing (Debian: apt-get install npm)"
fi
