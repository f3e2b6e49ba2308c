"""A reader of waltag's `version` dialect over redis-py: see ../reading.md."""

import json
import secrets

TTL = 86400  # seconds: the cache's `ttl: 1d` in waltag's rules


def get(redis, name, tags, compute, life=3600):
    """The record `name`, or compute() stored under `tags`. `redis`: redis.Redis(decode_responses=True)."""

    def versions(tags):
        return dict(zip(tags, redis.mget(tags))) if tags else {}

    stored = redis.get("record:" + name)
    if stored is not None:
        record = json.loads(stored)
        now = versions(list(record["tags"]))
        if None not in now.values() and now == record["tags"]:
            return record["value"]

    for tag, version in versions(tags).items():
        if version is None:
            redis.set(tag, secrets.randbits(63), nx=True, ex=TTL)
    before = versions(tags)  # from before the computation, never from after it
    value = compute()
    redis.set("record:" + name, json.dumps({"tags": before, "value": value}), ex=min(life, TTL))
    return value
