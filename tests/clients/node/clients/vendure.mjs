// Vendure's RedisCacheStrategy (@vendure/core) by itself, without a Vendure server.
// Options: namespace (default "vendure-cache"), maxItemSizeInBytes.

import { getting } from "../race.mjs";

export async function open({ require, connection, version }, options) {
  const { RedisCacheStrategy } = require("@vendure/core/dist/plugin/redis-cache-plugin/redis-cache-strategy.js");
  const { Logger } = require("@vendure/core/dist/config/logger/vendure-logger.js");
  // It swallows every error of get and set, and logs it.
  const error = (message) => console.error(new Error(message));
  Logger.useLogger({ error, warn: error, info() {}, verbose() {}, debug() {} });
  const strategy = new RedisCacheStrategy({ redisOptions: connection, ...options });
  await strategy.init();
  const get = (key) => strategy.get(key);
  const set = (key, value, tags, timeout) =>
    strategy.set(key, value, { tags, ttl: timeout === undefined ? undefined : timeout * 1000 });
  return {
    library: version("@vendure/core"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => strategy.invalidateTags(tags),
    close: () => strategy.destroy(),
  };
}
