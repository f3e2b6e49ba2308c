"""redis-tagged-cache: `RedisTaggedCache(namespace=, host=, port=, db=)` with set, get, invalidate and its decorator.

Options: `namespace` (default: the library's), `lifetime_for_tags`, `lock` (the decorator's: one computes, others wait).
Its get() has to be told the tags: those of the last set or begin of this process, or "tags" in the request. And its
get() writes: a version for each tag that has none.
"""

from urllib.parse import urlsplit

from rtc import CacheMiss, RedisTaggedCache

from .base import Base, Complaints


class Client(Base):
    distribution = "redis-tagged-cache"

    def __init__(self, url, options):
        super().__init__(url, options)
        at = urlsplit(url)
        self.lock = self.option("lock", False)
        more = {name: self.option(name) for name in ("namespace", "lifetime_for_tags") if name in options}
        self.cache = RedisTaggedCache(host=at.hostname, port=at.port or 6379, db=int(at.path[1:] or 0), **more)
        self.tags = {}
        self.complaints = Complaints("rtc.app.service", "rtc.app.decorator", "root")

    def set(self, key, value, tags, timeout):
        self.tags[key] = tags
        self.cache.set(key, value, tags=tags, lifetime=timeout)
        self.complaints.check()

    def get(self, key, tags):
        try:
            return self.cache.get(key, tags=self.tags.get(key, []) if tags is None else tags)
        except CacheMiss:
            return None
        finally:
            self.complaints.check()

    def invalidate(self, tags):
        self.cache.invalidate(tags)
        self.complaints.check()

    def remember(self, request, compute):
        key, tags = request["key"], request.get("tags", [])
        self.tags[key] = tags

        @self.cache.decorator(tags=tags, lifetime=request.get("timeout", 600), key=lambda: key, lock=self.lock)
        def slow():
            return compute()

        slow()
        self.complaints.check()
