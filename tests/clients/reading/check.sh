#!/usr/bin/env bash
# check.sh DIR [NODE]: tries the readers of docs/reading/, each alone and all together, on a Redis of their own.
#
# DIR is what ../python/install.sh made. The others run where they can: php with phpredis; node with the package `redis`
# in NODE/node_modules; go (1.18 or later; needs no modules). Prints `NAME library version ok`, `... FAILED why` or
# `NAME skipped why`, and fails if one failed. Needs redis-server.
#
# Beside each reader is a program that drives it: reader.py URL, reader.php URL, reader.mjs URL NODE, main.go URL. One
# JSON object per line on stdin, one answer per line on stdout:
#
#   at first                                          {"ready": true, "library": "redis-py 8.1.0"}
#   {"op": "set", "key": K, "value": V, "tags": [..], "timeout": SECONDS}  {"ok": true}; a fill, whatever was there
#   {"op": "get", "key": K}                           {"ok": true, "value": V}; null is a miss
#   {"op": "begin", "key": K, "tags": [..]}           {"ok": true}; missed, and its computation is running
#   {"op": "finish", "key": K, "value": V}            {"ok": true}; it returned V, and the record is stored
#   {"op": "quit"}                                    {"ok": true}; ends, as does the end of stdin
#   anything that fails                               {"ok": false, "error": "..."}; the process goes on
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ -z "$1" ]; then
    echo "usage: check.sh DIR [NODE]" >&2
    exit 2
fi
exec "$1/venv/bin/python" -B "$(dirname "${BASH_SOURCE[0]}")/check.py" "$@"
