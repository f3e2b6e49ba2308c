#!/usr/bin/env bash
# check.sh DIR: tries reader.py with every client, on a Redis of its own; DIR is what install.sh made.
#
# Prints `NAME library version ok` or `NAME library version FAILED why`, and fails if one failed. Needs redis-server.
set -euo pipefail

if [ $# -ne 1 ] || [ -z "$1" ]; then
    echo "usage: check.sh DIR" >&2
    exit 2
fi
exec "$1/venv/bin/python" -B "$(dirname "${BASH_SOURCE[0]}")/check.py" "$1"
