// A reader of waltag's `version` dialect over the package `redis`: see ../reading.md.

import { randomBytes } from "node:crypto";

const TTL = 86400; // seconds: the cache's `ttl: 1d` in waltag's rules

// The record `name`, or compute() stored under `tags`. `redis`: a connected client.
export async function get(redis, name, tags, compute, life = 3600) {
  const versions = async (tags) => (tags.length ? redis.mGet(tags) : []);

  const stored = await redis.get(`record:${name}`);
  if (stored !== null) {
    const record = JSON.parse(stored);
    const names = Object.keys(record.tags);
    const now = await versions(names);
    if (names.every((tag, i) => now[i] !== null && now[i] === record.tags[tag])) return record.value;
  }

  for (const [i, version] of (await versions(tags)).entries()) {
    const random = () => (randomBytes(8).readBigUInt64BE() >> 1n).toString();
    if (version === null) await redis.set(tags[i], random(), { NX: true, EX: TTL });
  }
  const before = await versions(tags); // from before the computation, never from after it
  const value = await compute();
  const record = { tags: Object.fromEntries(tags.map((tag, i) => [tag, before[i]])), value };
  await redis.set(`record:${name}`, JSON.stringify(record), { EX: Math.min(life, TTL) });
  return value;
}
