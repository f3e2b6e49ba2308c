// What the two `use cache` handlers share: the entries that Next.js 16 hands to them.

import { getting } from "../race.mjs";

const text = (stream) => new Response(stream).text();

// `timestamp` is when the computation started: Next.js takes it before (use-cache-wrapper), so it is the mark of `begin`.
export function openUseCache(handler) {
  const get = async (key) => {
    const entry = await handler.get(key, []);
    // An entry of a tag that is `stale`: Next.js computes it anew.
    return entry === undefined || entry.revalidate === -1 ? null : text(entry.value);
  };
  const set = (key, value, tags, timeout, timestamp = Date.now()) => {
    // What Next.js has for "no expiry" (cacheLife "max" is 1 year).
    const seconds = timeout ?? 365 * 24 * 3600;
    const entry = { tags, timestamp, stale: 300, revalidate: seconds, expire: seconds, value: new Blob([value]).stream() };
    return handler.set(key, Promise.resolve(entry));
  };
  return { get, set, ...getting(get, set, () => Date.now()), invalidate: (tags) => handler.updateTags(tags) };
}
