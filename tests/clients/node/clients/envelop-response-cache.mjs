// @envelop/response-cache-redis, its cache object as @envelop/response-cache drives it. The tag is an entity, `Type:id`
// (the id is what follows the last colon), or a whole type, `Type`.
// Options: prefix (of the entity and operation keys, by the library's own two hooks; default none).

import { getting } from "../race.mjs";

export async function open({ load, connect, version }, { prefix }) {
  const { createRedisCache } = await load("@envelop/response-cache-redis");
  const redis = await connect();
  const cache = createRedisCache({
    redis,
    ...(prefix && {
      buildRedisEntityId: (type, id) => `${prefix}${type}:${id}`,
      buildRedisOperationResultCacheKey: (id) => `${prefix}operations:${id}`,
    }),
  });
  const get = async (key) => (await cache.get(key))?.data.value;
  const set = (key, value, tags, timeout) =>
    cache.set(key, { data: { value } }, tags.map(entity), timeout === undefined ? Infinity : timeout * 1000);
  return {
    library: version("@envelop/response-cache-redis"),
    get,
    set,
    ...getting(get, set),
    invalidate: (tags) => cache.invalidate(tags.map(entity)),
    close: () => redis.disconnect(),
  };
}

function entity(tag) {
  const colon = tag.lastIndexOf(":");
  return colon < 0 ? { typename: tag } : { typename: tag.slice(0, colon), id: tag.slice(colon + 1) };
}
