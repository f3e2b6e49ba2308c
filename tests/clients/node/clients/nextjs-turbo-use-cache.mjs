// @trieb.work/nextjs-turbo-redis-cache, its `use cache` handler, as Next.js 16 drives it.
// Options: keyPrefix (default "tests:"; the library's own is from the environment), redisGetDeduplication,
// inMemoryCachingTime (ms, the library's default is 10000).

import { ready } from "./nextjs-turbo.mjs";
import { openUseCache } from "./use-cache.mjs";

export async function open({ load, url, connection, version }, options) {
  process.env.SKIP_KEYSPACE_CONFIG_CHECK = "TRUE";
  const { getRedisCacheComponentsHandler } = await load("@trieb.work/nextjs-turbo-redis-cache");
  const handler = getRedisCacheComponentsHandler({
    redisUrl: url,
    database: connection.db,
    keyPrefix: "tests:",
    ...options,
  });
  await ready(handler);
  // A lost server is a miss to it, and nothing to store into, without a word.
  const checked = Object.fromEntries(
    ["get", "set", "updateTags"].map((name) => [
      name,
      async (...args) => {
        if (handler.isClientUnavailable()) throw new Error("no connection");
        return handler[name](...args);
      },
    ]),
  );
  return {
    library: version("@trieb.work/nextjs-turbo-redis-cache"),
    ...openUseCache(checked),
    close: () => handler.client.disconnect(),
  };
}
