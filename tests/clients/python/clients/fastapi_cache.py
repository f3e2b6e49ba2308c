"""fastapi-cache2: `@cache(expire=, namespace=)` over its RedisBackend; no tags, so those of a request are ignored.

Options: `prefix` (of FastAPICache.init, default "fastapi-cache"), `namespace` (of the decorator, default none), and
`key_builder`: `plain` (default: `<prefix>:<namespace>:<key>`) or `default`, the library's, an MD5 of module, function
and arguments (here: of one function, called with the key). The own invalidation is FastAPICache.clear(namespace).
"""

import asyncio

from fastapi_cache import FastAPICache, default_key_builder
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from redis import asyncio as redis

from .base import Base, Complaints, Loop


def plain(function, namespace="", *, request=None, response=None, args, kwargs):
    return f"{namespace}:{args[0]}"


async def page(key):
    """Stands for the function behind the records: the library's key builder asks for its name and arguments."""


class Client(Base):
    distribution = "fastapi-cache2"

    def __init__(self, url, options):
        super().__init__(url, options)
        self.loop = Loop()
        self.namespace = self.option("namespace", "")
        self.prefix = self.option("prefix", "fastapi-cache")
        self.builder = {"plain": plain, "default": default_key_builder}[self.option("key_builder", "plain")]
        self.backend = RedisBackend(redis.from_url(url))
        FastAPICache.init(self.backend, prefix=self.prefix, key_builder=self.builder)
        self.complaints = Complaints("fastapi_cache.decorator")

    def name(self, key):
        return self.builder(page, f"{self.prefix}:{self.namespace}", args=(key,), kwargs={})

    def set(self, key, value, tags, timeout):
        self.loop.run(self.backend.set(self.name(key), FastAPICache.get_coder().encode(value), timeout))

    def get(self, key, tags):
        stored = self.loop.run(self.backend.get(self.name(key)))
        return None if stored is None else FastAPICache.get_coder().decode(stored)

    def invalidate(self, tags):
        self.loop.run(FastAPICache.clear(self.namespace or None))

    def remember(self, request, compute):
        async def slow(key):
            return await asyncio.to_thread(compute)

        slow.__name__ = page.__name__
        cached = cache(expire=request.get("timeout", 600), namespace=self.namespace)(slow)
        self.loop.run(cached(request["key"]))
        self.complaints.check()
