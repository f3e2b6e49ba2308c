// A Node process that reads and writes tagged cache records with a real client library, for tests.
//
//     DIR/node_modules/.bin/node reader.mjs --modules DIR --client NAME --url redis://127.0.0.1:PORT/DB
//                                           [--options '{"...":...}']
//
// DIR is what install.sh made. NAME is a file of clients/; its options are described there. One JSON object per line on
// stdin, one answer per line on stdout, in order. The first line tells that it is ready and which library it drives,
// {"ready": true, "library": "bentocache 1.6.1"}, or why not, {"ready": false, "error": "..."}. It ends with `quit` or
// the end of stdin, so it does not outlive the test that started it.
//
//     {"op": "set", "key": K, "value": V, "tags": [...], "timeout": N}  -> {"ok": true}; N in seconds, without: no expiry
//                                                     (or the longest that the library has)
//     {"op": "get", "key": K}                      -> {"ok": true, "value": V}; null is a miss, and nothing is computed
//     {"op": "begin", "key": K, "tags": [...], "timeout": N} -> {"ok": true}; found a miss, its computation is running
//     {"op": "finish", "key": K, "value": V}       -> {"ok": true}; the computation gave V and the library has stored it
//     {"op": "compute", "key": K, "value": V, "tags": [...], "timeout": N} -> {"ok": true, "value": X}; get or compute
//                                                     in one go: X is what is cached, or V, computed without any delay
//     {"op": "invalidate", "tags": [...]}          -> {"ok": true}; the library's own invalidation, to compare with
//     {"op": "quit"}                               -> {"ok": true}
//     anything that fails                          -> {"ok": false, "error": "..."}; the process goes on
//
// Keys, values and tags are strings. `begin` is an error when there is a value. Some libraries take the tags of a record
// from the reader, not from the record (nextjs-turbo, layered-loader): for them this process remembers the tags that it
// has seen with a key, and a `get` may bring "tags" as well.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { inspect, parseArgs } from "node:util";
import vm from "node:vm";

// Nothing but answers on stdout: what a library logs goes to stderr. Several libraries swallow a failure and only log
// the error; it is the answer here.
let swallowed = null;
for (const method of ["log", "info", "debug", "warn", "error", "trace"]) {
  console[method] = (...args) => {
    swallowed ??= args.find((arg) => arg instanceof Error) ?? null;
    process.stderr.write(args.map((arg) => (typeof arg === "string" ? arg : inspect(arg))).join(" ") + "\n");
  };
}

const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");
const describe = (error) => (error instanceof Error ? `${error.name}: ${error.message}` : String(error));

// That the way `load` imports is experimental in Node 22 is no news to a test.
process.removeAllListeners("warning");

// What a client module gets: how to load from DIR, and where Redis is.
function environment(dir, url) {
  const require = createRequire(join(dir, "_.js"));
  const nodes = url.startsWith("redis+cluster://") ? url.slice("redis+cluster://".length).split(",") : [];
  const parsed = new URL(nodes.length ? `redis://${nodes[0]}` : url);
  const connection = {
    host: parsed.hostname,
    port: Number(parsed.port || 6379),
    db: Number(parsed.pathname.slice(1) || 0),
    maxRetriesPerRequest: 1,
  };
  return {
    url,
    connection,
    // An ioredis client, connected: of one server, or of a Cluster.
    async connect(options = {}) {
      const { Cluster, Redis } = require("ioredis");
      const redis = checked(nodes.length ? new Cluster(nodes.map((node) => `redis://${node}`)) : new Redis({ ...connection, ...options }));
      await redis.ping();
      return redis;
    },
    checked,
    require,
    // A package as the `import` of an application in DIR gets it: by the "import" condition of its package.json.
    load: new vm.Script("(name) => import(name)", {
      filename: join(dir, "_.js"),
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    }).runInThisContext(),
    version: (name, folder = name) =>
      `${name} ${JSON.parse(readFileSync(join(dir, "node_modules", folder, "package.json"), "utf8")).version}`,
  };
}

// exec() of an ioredis pipeline does not fail when its commands do, and hardly a library looks at what each has given.
function checked(redis) {
  const pipeline = redis.pipeline.bind(redis);
  redis.pipeline = (...commands) => {
    const made = pipeline(...commands);
    const exec = made.exec.bind(made);
    made.exec = async (...args) => {
      const results = await exec(...args);
      const failed = results?.find(([error]) => error);
      if (failed) console.error(failed[0]);
      return results;
    };
    return made;
  };
  return redis;
}

// Some libraries wait without end for a server that is gone.
function inTime(result) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(reject, 10000, new Error("the library has not answered for 10 s"));
  });
  return Promise.race([result, late]).finally(() => clearTimeout(timer));
}

async function answer(client, request) {
  const { op, key, value, tags = [], timeout } = request;
  switch (op) {
    case "set":
      await client.set(key, value, tags, timeout);
      return {};
    case "get":
      return { value: (await client.get(key, request.tags)) ?? null };
    case "begin":
      await client.begin(key, tags, timeout);
      return {};
    case "finish":
      await client.finish(key, value);
      return {};
    case "compute":
      return { value: await client.compute(key, value, tags, timeout) };
    case "invalidate":
      await client.invalidate(tags);
      return {};
    case "quit":
      return {};
    default:
      throw new Error(`no such op: ${op}`);
  }
}

async function main() {
  const { values: args } = parseArgs({
    options: {
      modules: { type: "string" },
      client: { type: "string" },
      url: { type: "string" },
      options: { type: "string", default: "{}" },
    },
  });
  let client;
  try {
    if (!/^[a-z-]+$/.test(args.client ?? "")) throw new Error(`no such client: ${args.client}`);
    const { open } = await import(`./clients/${args.client}.mjs`);
    client = await inTime(open(environment(resolve(args.modules), args.url), JSON.parse(args.options)));
    if (swallowed) throw swallowed;
  } catch (error) {
    say({ ready: false, error: describe(error) });
    process.exit(1);
  }
  say({ ready: true, library: client.library });
  for await (const line of createInterface({ input: process.stdin })) {
    let op = null;
    swallowed = null;
    try {
      const request = JSON.parse(line);
      op = request.op;
      const fields = await inTime(answer(client, request));
      if (swallowed) throw swallowed;
      say({ ok: true, ...fields });
    } catch (error) {
      say({ ok: false, error: describe(error) });
    }
    if (op === "quit") break;
  }
  // A library may wait for a server that is gone; the exit does not.
  await Promise.race([Promise.resolve(client.close()).catch(() => {}), new Promise((done) => setTimeout(done, 1000))]);
  process.exit(0);
}

// What fails in the background, with nobody waiting, must not end the process.
process.on("unhandledRejection", (error) => console.error("unhandled rejection:", error));
process.on("uncaughtException", (error) => console.error("uncaught exception:", error));
await main();
