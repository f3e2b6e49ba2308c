// @trieb.work/nextjs-turbo-redis-cache, its handler for pages and the data cache, as Next.js drives it.
// Options: keyPrefix (default "tests:"; the library's own is from the environment), sharedTagsKey, redisGetDeduplication,
// inMemoryCachingTime (ms, the library's default is 10000), kind ("FETCH", the default, or "APP_PAGE"), softTags.
//
// In FETCH kind the library checks the tags that the reader brings, not those of the record; in the other kinds none. It
// keeps the stamps of tags, and what it has read, in memory. It answers from memory for inMemoryCachingTime.

import { getting } from "../race.mjs";
import { record, valueOf } from "./next.mjs";

export async function open({ load, url, connection, version }, options) {
  const { kind = "FETCH", softTags = [], ...rest } = options;
  // Without it the server must have notify-keyspace-events.
  process.env.SKIP_KEYSPACE_CONFIG_CHECK = "TRUE";
  const { RedisStringsHandler } = await load("@trieb.work/nextjs-turbo-redis-cache");
  const handler = new RedisStringsHandler({ redisUrl: url, database: connection.db, keyPrefix: "tests:", ...rest });
  await ready(handler);
  const seen = new Map();
  const get = async (key, tags = seen.get(key) ?? []) => valueOf(await handler.get(key, { kind, tags, softTags })) ?? null;
  const set = (key, value, tags, timeout) => {
    seen.set(key, tags);
    return handler.set(key, ...record(kind, value, tags, timeout));
  };
  return {
    library: version("@trieb.work/nextjs-turbo-redis-cache"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => handler.revalidateTag(tags),
    close: () => handler.client.disconnect(),
  };
}

// The constructor connects in the background; each SyncedMap is ready when it has read its hash and subscribed.
export async function ready(handler) {
  const maps = [handler.sharedTagsMap, handler.revalidatedTagsMap, handler.inMemoryDeduplicationCache];
  let timer;
  await Promise.race([
    Promise.all(maps.map((map) => map.waitUntilReady())),
    new Promise((_, reject) => (timer = setTimeout(reject, 10000, new Error("the handler is not ready")))),
  ]).finally(() => clearTimeout(timer));
}
