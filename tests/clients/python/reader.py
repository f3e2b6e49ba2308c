"""A process that reads and writes cache records with a real client library, for tests.

    DIR/venv/bin/python reader.py --client cashews --url redis://127.0.0.1:6379/0 [--options '{"tags_url": "..."}']

DIR is what install.sh made; a client that has a venv of its own, DIR/venv-NAME, is run with that one. The clients and
their options: the modules in clients/. One JSON object per line on stdin, one answer per line on stdout, in order. The
first line tells that it is ready: {"ready": true, "library": "cashews 7.6.0"}. It ends with `quit` or the end of stdin.

    {"op": "set", "key": K, "value": V, "tags": [...], "timeout": SECONDS}  -> {"ok": true}
    {"op": "get", "key": K}                 -> {"ok": true, "value": V}; null is a miss, and nothing is computed for it
    {"op": "begin", "key": K, "tags": [...], "timeout": SECONDS}            -> {"ok": true}
        the library's own get-or-compute has missed, and its computation is running
    {"op": "finish", "key": K, "value": V}  -> {"ok": true}; the computation returned V and the library has stored it
    {"op": "invalidate", "tags": [...]}     -> {"ok": true}; the library's own invalidation, to compare with
    {"op": "quit"}                          -> {"ok": true}
    anything that fails                     -> {"ok": false, "error": "..."}; the process goes on

The records of django-cacheops and django-cachalot are answers of ORM queries: see clients/orm.py for their operations.
"""

import argparse
import importlib
import json
import sys

sys.dont_write_bytecode = True  # no __pycache__ beside these files

CLIENTS = ["cashews", "redis-tagged-cache", "fastapi-cache", "django-cachalot", "django-cacheops"]


def say(**fields):
    print(json.dumps(fields), file=OUT, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", required=True, choices=CLIENTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--options", type=json.loads, default={})
    args = parser.parse_args()

    module = importlib.import_module("clients." + args.client.replace("-", "_"))
    client = module.Client(args.url, dict(args.options))
    if client.options:
        sys.exit(f"reader.py: {args.client} has no such options: {', '.join(client.options)}")

    sys.stdin.reconfigure(encoding="utf-8")
    say(ready=True, library=client.library())
    for line in sys.stdin:
        request = {}
        try:
            request = json.loads(line)
            operation = getattr(client, "op_" + request["op"], None)
            if operation is None:
                raise ValueError(f"no such op: {request['op']}")
            say(ok=True, **(operation(request) or {}))
        except Exception as error:  # whatever the library raises is an answer: a tag it cannot take, a lost server
            say(ok=False, error=f"{type(error).__name__}: {error}")
            continue
        if request["op"] == "quit":
            break


if __name__ == "__main__":
    # Answers only on stdout: whatever a library prints goes to stderr.
    OUT, sys.stdout = sys.stdout, sys.stderr
    main()
