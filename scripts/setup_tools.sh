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
