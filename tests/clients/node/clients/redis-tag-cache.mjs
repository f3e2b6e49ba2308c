// redis-tag-cache: sets of keys, `tags:T` and `data:K`.
// Options: keyPrefix (of ioredis), defaultTimeout (seconds).

import { getting } from "../race.mjs";

export async function open({ load, connection, version }, { keyPrefix, defaultTimeout }) {
  const { default: module } = await load("redis-tag-cache");
  const TagCache = module.default ?? module;
  const cache = new TagCache({ redis: { ...connection, keyPrefix }, defaultTimeout });
  const get = (key) => cache.get(key);
  const set = (key, value, tags, timeout) => cache.set(key, value, tags, { timeout });
  return {
    library: version("redis-tag-cache"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => cache.invalidate(...tags),
    close: () => cache.redis.disconnect(),
  };
}
