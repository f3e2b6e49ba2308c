"""A Django process that reads and writes tagged cache records with a real client library, for tests.

    DIR/venv/bin/python reader.py --libraries DIR --library cache-dependencies --backend django-redis \
        --url redis://127.0.0.1:6379/0 [--key-prefix P] [--version N]

DIR is what install.sh made. One JSON object per line on stdin, one answer per line on stdout, in order. The first line
tells that it is ready; it ends with `quit` or the end of stdin, so it does not outlive the test that started it.

    {"op": "set", "key": K, "value": V, "tags": [...], "timeout": N}    -> {"ok": true}; without a timeout: no expiry
    {"op": "get", "key": K}                     -> {"ok": true, "value": V}; null is a miss
    {"op": "invalidate", "tags": [...]}         -> {"ok": true}; the library's own invalidation, to compare with
    {"op": "tag_keys", "tags": [...]}           -> {"ok": true, "keys": [...]}; full Redis keys, in this order
    {"op": "quit"}                              -> {"ok": true}
    anything that fails                         -> {"ok": false, "error": "..."}; the process goes on
"""

import argparse
import json
import os
import sys

sys.dont_write_bytecode = True  # no __pycache__ beside this file

import django
from django.conf import settings

import shims

RELEASES = {"cache-tagging": "0.7.3", "cache-dependencies": "0.7.7.48"}
BACKENDS = {
    "django-redis": "django_redis.cache.RedisCache",
    "django": "django.core.cache.backends.redis.RedisCache",
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--libraries", required=True)
    parser.add_argument("--library", dest="client", required=True, choices=RELEASES)
    parser.add_argument("--backend", required=True, choices=BACKENDS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key-prefix", default="")
    parser.add_argument("--version", type=int, default=1)
    return parser.parse_args()


def configure(args):
    """Django's settings, then what the library misses, then the way to the library: import it only after this."""
    cache = {
        "BACKEND": BACKENDS[args.backend],
        "LOCATION": args.url,
        "KEY_PREFIX": args.key_prefix,
        "VERSION": args.version,
    }
    settings.configure(CACHES={"default": cache}, SECRET_KEY="tests")
    django.setup()
    shims.install()
    release = f"{args.client}-{RELEASES[args.client]}"
    # In front: both libraries bring a package `cache_tagging`.
    sys.path.insert(0, os.path.join(args.libraries, release))
    return release


class CacheTagging:
    """cache-tagging 0.7.3, imported as its description shows."""

    def __init__(self):
        from cache_tagging import tagging
        from cache_tagging.django_cache_tagging import cache

        self.cache = cache
        self.tag_name = tagging.tag_prepare_name

    def get(self, key):
        return self.cache.get(key)


class CacheDependencies:
    """cache-dependencies, imported as its README shows."""

    def __init__(self):
        from cache_dependencies import utils
        from django_cache_dependencies import caches

        self.cache = caches["default"]
        self.tag_name = utils.make_tag_key

    def get(self, key):
        # A miss opens a parent record that inherits the tags of all that is set after it, until its own set() or
        # abort(). No set() has to follow here, so each get ends by itself; after a hit abort() does nothing.
        try:
            return self.cache.get(key)
        finally:
            self.cache.abort(key)


LIBRARIES = {"cache-tagging": CacheTagging, "cache-dependencies": CacheDependencies}


def answer(library, request):
    op = request["op"]
    if op == "set":
        library.cache.set(
            request["key"], request["value"], tags=request.get("tags", []), timeout=request.get("timeout")
        )
        return {}
    if op == "get":
        return {"value": library.get(request["key"])}
    if op == "invalidate":
        library.cache.invalidate_tags(*request["tags"])
        return {}
    if op == "tag_keys":
        # make_key() is Django's own: KEY_PREFIX, VERSION and the name, as the backend sends it.
        return {"keys": [str(library.cache.make_key(library.tag_name(tag))) for tag in request["tags"]]}
    if op == "quit":
        return {}
    raise ValueError(f"no such op: {op}")


def say(**fields):
    print(json.dumps(fields), flush=True)


def main():
    args = arguments()
    release = configure(args)
    library = LIBRARIES[args.client]()
    sys.stdin.reconfigure(encoding="utf-8")
    say(ready=True, django=django.get_version(), library=release)
    for line in sys.stdin:
        request = None
        try:
            request = json.loads(line)
            say(ok=True, **answer(library, request))
        except Exception as error:  # whatever the library raises is an answer: a tag it cannot read, a lost server
            say(ok=False, error=f"{type(error).__name__}: {error}")
            continue
        if request["op"] == "quit":
            break


if __name__ == "__main__":
    main()
