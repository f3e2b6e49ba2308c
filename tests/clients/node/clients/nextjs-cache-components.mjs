// @mrjasonroy/cache-components-cache-handler, its `use cache` handler (createCacheHandler), as Next.js 16 drives it.
// Options: keyPrefix (default "nextjs:data-cache:"), tagPrefix (default "nextjs:tags:").

import { openUseCache } from "./use-cache.mjs";

export async function open({ load, url, version }, { keyPrefix, tagPrefix }) {
  const { createCacheHandler } = await load("@mrjasonroy/cache-components-cache-handler");
  // debug: it swallows every error, and this is the only way to see one.
  const handler = createCacheHandler({ type: "redis", url, keyPrefix, tagPrefix, debug: true });
  return {
    library: version("@mrjasonroy/cache-components-cache-handler"),
    ...openUseCache(handler),
    close: () => {}, // it gives no way to
  };
}
