// cacheable with tags, over @keyv/redis.
// Options: l1 (default true: memory as the primary store and Redis as the secondary; false: Redis as the only store),
// namespace (of Cacheable), createKeyv (true: the store is made by createKeyv of @keyv/redis, not by its class), and with
// it keyvNamespace.
//
// Its getOrSet takes no tags (it would store the record without any), so `begin` and `finish` are a get and a set.

import { getting } from "../race.mjs";

export async function open({ load, url, version }, { l1 = true, namespace, createKeyv: made, keyvNamespace }) {
  const { Cacheable } = await load("cacheable");
  const { default: KeyvRedis, createKeyv } = await load("@keyv/redis");
  const store = made ? createKeyv(url, { namespace: keyvNamespace }) : new KeyvRedis(url);
  const cache = new Cacheable({ ...(l1 ? { secondary: store } : { primary: store }), tags: true, namespace });
  cache.on("error", (error) => console.error(error));
  const get = (key) => cache.get(key);
  const set = (key, value, tags, timeout) =>
    cache.set(key, value, { tags, ttl: timeout === undefined ? undefined : timeout * 1000 });
  return {
    library: version("cacheable"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => cache.tags.invalidateTags(tags),
    close: () => cache.disconnect(),
  };
}
