// What nextjs-neshca, nextjs-fortedigital and nextjs-turbo share: the records that Next.js hands to its cache handler
// (patch-fetch and the response cache; the names of the kinds changed with Next.js 15).

// `kind`: FETCH (the data cache; its tags are in the context) or APP_PAGE (its tags are in a header of the page).
export function record(kind, value, tags, timeout) {
  const revalidate = timeout ?? false;
  if (kind === "FETCH") {
    const data = { headers: {}, body: Buffer.from(value).toString("base64"), status: 200, url: "http://tests/" };
    return [{ kind, data, revalidate }, { fetchCache: true, fetchUrl: data.url, revalidate, tags }];
  }
  const headers = { "x-next-cache-tags": tags.join(",") };
  if (kind === "APP_PAGE") {
    const page = { kind, html: value, rscData: Buffer.from(value), headers, postponed: undefined, status: 200 };
    return [{ ...page, segmentData: undefined }, { cacheControl: { revalidate, expire: undefined } }];
  }
  if (kind === "PAGE") {
    return [{ kind, html: value, pageData: {}, headers, postponed: undefined, status: 200 }, { revalidate }];
  }
  throw new Error(`no such kind: ${kind}`);
}

export const valueOf = (found) =>
  found?.value?.kind === "FETCH" ? Buffer.from(found.value.data.body, "base64").toString() : found?.value?.html;

// The CacheHandler class of nextjs-neshca and of nextjs-fortedigital is the same: it makes the stored record, and it
// swallows whatever its handlers throw. `onto(handler)` gives it one Redis handler that remembers the error.
export function openCacheHandler(CacheHandler, handler, { kind, softTags = [] }) {
  let failure = null;
  const honest = Object.fromEntries(
    Object.entries(handler).map(([name, member]) => [
      name,
      typeof member !== "function"
        ? member
        : async (...args) => {
            try {
              return await member(...args);
            } catch (error) {
              failure = error;
              throw error;
            }
          },
    ]),
  );
  CacheHandler.onCreation(() => ({ handlers: [honest] }));
  const cache = new CacheHandler({ serverDistDir: "/nonexistent/.next/server", dev: false });
  const checked = async (result) => {
    failure = null;
    const found = await result();
    if (failure) throw failure;
    return found;
  };
  return {
    get: async (key) => valueOf(await checked(() => cache.get(key, { softTags }))) ?? null,
    set: (key, value, tags, timeout) => checked(() => cache.set(key, ...record(kind, value, tags, timeout))),
    invalidate: (tags) => checked(() => cache.revalidateTag(tags)),
  };
}
