"""cashews: `cache.set(tags=)`, `cache.get`, `cache.delete_tags` and the decorator `@cache(ttl=, key=, tags=)`.

Options: `tags_url`, another Redis for the sets of the tags; anything else goes to `cache.setup()`, for example
`client_side`, `client_side_prefix`, `protocol`, `pickle_type`, `secret`. `suppress` is false here: a lost server is an
error, not a miss. Keys and tags without braces: they are templates to this library.
"""

import asyncio

from cashews import Cache

from .base import Base, Loop


class Client(Base):
    distribution = "cashews"

    def __init__(self, url, options):
        super().__init__(url, options)
        self.loop = Loop()
        self.cache = Cache()
        tags_url = self.option("tags_url")
        setup = {"suppress": False, **self.options}
        self.options = {}
        self.cache.setup(url, **setup)
        if tags_url:
            self.cache.setup_tags_backend(tags_url, suppress=False)
        self.loop.run(self.cache.init())

    def set(self, key, value, tags, timeout):
        self.loop.run(self.cache.set(key, value, expire=timeout, tags=tags))

    def get(self, key, tags):
        return self.loop.run(self.cache.get(key))

    def invalidate(self, tags):
        self.loop.run(self.cache.delete_tags(*tags))

    def remember(self, request, compute):
        @self.cache(ttl=request.get("timeout", 600), key=request["key"], tags=tuple(request.get("tags", [])))
        async def slow():
            return await asyncio.to_thread(compute)

        self.loop.run(slow())
