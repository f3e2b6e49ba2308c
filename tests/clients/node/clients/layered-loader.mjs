// layered-loader's GroupLoader over Redis; the tag is the group, one for each record.
// Options: l1 (true: memory and notifications as well), prefix (default "cat"), channel (default "cat-channel"), ttl
// (seconds, of all records: the library has none for a single one; default 600), groupTtl (seconds, of the group index).
//
// A reader has to know the group of a key: the tag that came last with the key, or the tag of the `get`.

import { computing } from "../race.mjs";

export async function open({ load, connect, version }, options) {
  const { l1 = false, prefix = "cat", channel = "cat-channel", ttl = 600, groupTtl } = options;
  const { GroupLoader, RedisGroupCache, createGroupNotificationPair } = await load("layered-loader");
  const redis = await connect();
  const computations = new Map();
  const source = { name: "computation", getFromGroup: async (key) => computations.get(key)?.() };
  const failed = (error) => {
    throw error;
  };
  const memory = { cacheId: "tests", ttlInMsecs: ttl * 1000, maxGroups: 100, maxItemsPerGroup: 100 };
  const asyncCache = new RedisGroupCache(redis, {
    prefix,
    ttlInMsecs: ttl * 1000,
    ...(groupTtl && { groupTtlInMsecs: groupTtl * 1000 }),
  });
  const pair =
    l1 && createGroupNotificationPair({ channel, consumerRedis: await connect(), publisherRedis: await connect() });
  const loader = new GroupLoader({
    ...(l1 && { inMemoryCache: memory, notificationConsumer: pair.consumer, notificationPublisher: pair.publisher }),
    asyncCache,
    dataSources: [source],
    cacheUpdateErrorHandler: failed,
    loadErrorHandler: failed,
  });
  await loader.init();
  const groups = new Map();
  const group = (key, tags) => {
    if (tags || !groups.has(key)) groups.set(key, only(tags));
    return groups.get(key);
  };
  const loadWith = async (key, tags, _timeout, compute) => {
    computations.set(key, compute);
    try {
      return await loader.get(key, group(key, tags));
    } finally {
      computations.delete(key);
    }
  };
  return {
    library: version("layered-loader"),
    get: (key, tags) => loader.get(key, group(key, tags)),
    // It has no set: its own way to a new value is to drop the old one and to load.
    set: async (key, value, tags) => {
      await loader.invalidateCacheFor(key, group(key, tags));
      await loadWith(key, tags, undefined, async () => value);
    },
    ...computing(loadWith),
    invalidate: async (tags) => {
      for (const tag of tags) await loader.invalidateCacheForGroup(tag);
    },
    close: async () => {
      await loader.close();
      redis.disconnect();
    },
  };
}

function only(tags) {
  if (tags?.length !== 1) throw new Error("layered-loader: exactly one tag, the group of the key");
  return tags[0];
}
