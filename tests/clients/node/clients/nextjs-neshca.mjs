// @neshca/cache-handler, its CacheHandler class over its redis-strings handler, as Next.js 14 drives it.
// Options: keyPrefix (default ""), sharedTagsKey, keyExpirationStrategy, kind ("FETCH", the default, or "APP_PAGE", which
// Next.js 14 still calls PAGE), softTags (what Next.js brings to each get, as "_N_T_/path").

import { getting } from "../race.mjs";
import { openCacheHandler } from "./next.mjs";

export async function open({ load, require, url, version }, { kind = "FETCH", softTags, ...options }) {
  const { CacheHandler } = await load("@neshca/cache-handler");
  const { default: createHandler } = await load("@neshca/cache-handler/redis-strings");
  const client = require("redis").createClient({ url });
  client.on("error", (error) => console.error("redis:", error.message));
  await client.connect();
  const cache = openCacheHandler(CacheHandler, createHandler({ client, ...options }), {
    kind: kind === "APP_PAGE" ? "PAGE" : kind,
    softTags,
  });
  return {
    library: version("@neshca/cache-handler"),
    ...cache,
    ...getting(cache.get, cache.set),
    close: () => client.disconnect(),
  };
}
