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

# Azurite stands in for Azure's store in tests/clients; they do without it where it is not. npm checks the
# hash of each package that the lock file names.
if command -v npm >/dev/null; then
    azurite="$root/build/tools/azurite"
    if ! cmp --silent "$root/requirements/azurite/package-lock.json" "$azurite/stamp"; then
        rm -rf "$azurite"
        mkdir -p "$azurite"
        cp "$root"/requirements/azurite/package*.json "$azurite"
        npm ci --silent --no-audit --no-fund --omit=dev --omit=optional --ignore-scripts \
            --prefix "$azurite" </dev/null || {
            echo "setup_tools: could not install azurite" >&2
            exit 1
        }
        cp "$azurite/package-lock.json" "$azurite/stamp"
    fi
    ln -sf ../azurite/node_modules/.bin/azurite-blob "$root/build/tools/bin/azurite-blob"
else
    echo "skipped: azurite, because npm is missing (Debian: apt-get install npm)"
fi
