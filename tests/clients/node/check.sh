#!/usr/bin/env bash
# check.sh DIR [NAME...]: drives every client (or these) by itself on a private Redis; DIR is what install.sh made.
# Prints a line for each, "NAME library version ok" or "NAME library version FAILED why". Needs redis-server.
set -euo pipefail

if [ $# -lt 1 ] || [ -z "$1" ]; then
    echo "usage: check.sh DIR [NAME...]" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(cd "$1" && pwd)
shift
exec "$dir/node_modules/.bin/node" "$here/check.mjs" "$dir" "$@"
