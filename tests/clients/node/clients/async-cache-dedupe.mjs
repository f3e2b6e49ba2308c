// async-cache-dedupe over Redis, with references (its tags).
// Options: name (of the defined function, default "record": the keys are `name~key`), referencesTTL (seconds, the
// library's default is 60), keyPrefix (of ioredis).

import { computing } from "../race.mjs";

const YEAR = 365 * 24 * 3600; // it has no "no expiry"

export async function open({ load, connect, version }, { name = "record", referencesTTL, keyPrefix }) {
  const { createCache } = await load("async-cache-dedupe").then((module) => module.default ?? module);
  const client = await connect({ keyPrefix });
  // Its storage swallows every error and logs it.
  const failed = (problem) => console.error(problem.msg, problem.err);
  const log = { debug() {}, warn: failed, error: failed };
  const cache = createCache({
    ttl: YEAR,
    storage: { type: "redis", options: { client, log, invalidation: referencesTTL ? { referencesTTL } : true } },
    onError: (error) => console.error(error),
  });
  const calls = new Map();
  cache.define(
    name,
    {
      serialize: ({ key }) => key,
      references: ({ tags }) => tags,
      ttl: (result) => result.timeout ?? YEAR,
      transformer: { serialize: ({ value }) => value, deserialize: (value) => ({ value }) },
    },
    async ({ key, timeout }) => ({ value: await calls.get(key)(), timeout }),
  );
  const call = async (key, tags, timeout, compute) => {
    calls.set(key, compute);
    return (await cache[name]({ key, tags: [...tags], timeout })).value;
  };
  return {
    library: version("async-cache-dedupe"),
    get: async (key) => (await cache.get(name, `${name}~${key}`))?.value,
    set: (key, value, tags, timeout = YEAR) => cache.set(name, `${name}~${key}`, { value }, timeout, [...tags]),
    ...computing(call),
    invalidate: (tags) => cache.invalidateAll(tags),
    close: () => client.disconnect(),
  };
}
