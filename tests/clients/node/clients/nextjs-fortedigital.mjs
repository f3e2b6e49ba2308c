// @fortedigital/nextjs-cache-handler, its CacheHandler class over its redis-strings handler, as Next.js 16 drives it.
// Options: keyPrefix (default ""), sharedTagsKey, sharedTagsTtlKey, keyExpirationStrategy, kind ("FETCH", the default, or
// "APP_PAGE"), softTags (what Next.js brings to each get, as "_N_T_/path").

import { getting } from "../race.mjs";
import { openCacheHandler } from "./next.mjs";

export async function open({ load, require, url, version }, { kind = "FETCH", softTags, ...options }) {
  const { CacheHandler } = await load("@fortedigital/nextjs-cache-handler");
  const { default: createHandler } = await load("@fortedigital/nextjs-cache-handler/redis-strings");
  const client = require("redis-6").createClient({ url });
  client.on("error", (error) => console.error("redis:", error.message));
  await client.connect();
  const cache = openCacheHandler(CacheHandler, createHandler({ client, ...options }), { kind, softTags });
  return {
    library: version("@fortedigital/nextjs-cache-handler"),
    ...cache,
    ...getting(cache.get, cache.set),
    close: () => client.destroy(),
  };
}
