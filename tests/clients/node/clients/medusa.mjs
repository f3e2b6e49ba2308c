// @medusajs/caching-redis: its provider class, made by its own two loaders, without Medusa around it.
// Options: prefix (default "mc:"), ttl (seconds, default 3600), compressionThreshold (default 2048).

import { getting } from "../race.mjs";

export async function open({ checked, require, url, version }, options) {
  const loaders = ["hash", "connection"].map((name) => require(`@medusajs/caching-redis/dist/loaders/${name}`).default);
  const { RedisCachingProvider } = require("@medusajs/caching-redis/dist/services/redis-cache");
  // A failure is only a warning to it.
  const logger = { info() {}, warn: (message) => console.error(new Error(message)), error: (error) => console.error(error) };
  const cradle = {};
  const container = {
    register(name, resolver) {
      const resolvers = typeof name === "string" ? { [name]: resolver } : name;
      for (const [key, value] of Object.entries(resolvers)) cradle[key] = value.resolve();
    },
  };
  for (const loader of loaders) {
    await loader({ container, logger, options: { redisUrl: url, ...options } });
  }
  const provider = new RedisCachingProvider(cradle, options);
  checked(cradle.redisClient);
  const get = (key) => {
    // A lost server is a miss to it, without a word.
    if (!provider.isConnectionHealthy()) throw new Error("no connection");
    return provider.get({ key });
  };
  const set = (key, value, tags, timeout) => provider.set({ key, data: value, tags, ttl: timeout });
  return {
    library: version("@medusajs/caching-redis"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => provider.clear({ tags }),
    close: () => cradle.redisClient.disconnect(),
  };
}
