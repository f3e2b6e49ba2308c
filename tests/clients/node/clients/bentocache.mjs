// bentocache: Redis alone, or memory over Redis with the Redis bus.
// Options: l1 (true: memory and bus as well), prefix (default "bentocache"), namespace, store (its name, default "main").

import { computing } from "../race.mjs";

export async function open({ load, connect, connection, version }, { l1 = false, prefix, namespace, store = "main" }) {
  const { BentoCache, bentostore } = await load("bentocache");
  const { memoryDriver } = await load("bentocache/drivers/memory");
  const { redisDriver, redisBusDriver } = await load("bentocache/drivers/redis");
  const redis = await connect();
  const name = `waltag-tests-bus-${process.pid}`;
  let layers = bentostore();
  if (l1) layers = layers.useL1Layer(memoryDriver({}));
  layers = layers.useL2Layer(redisDriver({ connection: redis }));
  if (l1) layers = layers.useBus(redisBusDriver({ connection: { ...connection, connectionName: name } }));
  const bento = new BentoCache({ default: store, stores: { [store]: layers }, ...(prefix && { prefix }) });
  const cache = namespace ? bento.namespace(namespace) : bento.use(); // either makes the store, and its bus
  if (l1) await subscribed(redis, name);
  // null, not undefined: without a ttl the library's default is 30 s.
  const ttl = (timeout) => (timeout === undefined ? null : timeout * 1000);
  return {
    library: version("bentocache"),
    get: (key) => cache.get({ key }),
    set: (key, value, tags, timeout) => cache.set({ key, value, tags, ttl: ttl(timeout) }),
    ...computing((key, tags, timeout, factory) => cache.getOrSet({ key, tags, ttl: ttl(timeout), factory })),
    invalidate: (tags) => cache.deleteByTag({ tags }),
    close: () => bento.disconnectAll(),
  };
}

// The bus subscribes in the background. A connection is listed as a subscriber once its SUBSCRIBE is done.
async function subscribed(redis, name) {
  for (let tries = 0; tries < 500; tries++) {
    const clients = await redis.client("LIST", "TYPE", "pubsub");
    if (clients.split("\n").some((line) => line.includes(` name=${name} `))) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error("the bus did not subscribe");
}
