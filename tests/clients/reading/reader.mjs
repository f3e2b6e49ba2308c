// docs/reading/reader.mjs as a program: node reader.mjs URL DIR, where DIR/node_modules has `redis`. The protocol is that of ../reader.py.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { createInterface } from "node:readline";

import { get } from "../../../docs/reading/reader.mjs";

const [url, directory] = process.argv.slice(2);
const { createClient } = createRequire(resolve(directory) + "/")("redis");
const { version } = JSON.parse(readFileSync(resolve(directory, "node_modules/redis/package.json"), "utf8"));
const redis = await createClient({ url }).connect();
const miss = new Error("a miss");
const late = new Map();

async function answer({ op, key, value, tags = [], timeout = 600 }) {
  switch (op) {
    case "set":
      await redis.del(`record:${key}`);
      await get(redis, key, tags, () => value, timeout);
      return {};
    case "get":
      try {
        return { value: await get(redis, key, [], () => Promise.reject(miss)) };
      } catch (error) {
        if (error === miss) return { value: null };
        throw error;
      }
    case "begin": {
      const writer = {};
      await new Promise((began, failed) => {
        const compute = () => {
          began();
          return new Promise((finish) => (writer.finish = finish));
        };
        writer.done = get(redis, key, tags, compute);
        writer.done.then(() => failed(new Error("a hit: nothing is computed")), failed);
      });
      late.set(key, writer);
      return {};
    }
    case "finish": {
      const writer = late.get(key);
      late.delete(key);
      writer.finish(value);
      await writer.done;
      return {};
    }
    case "quit":
      return {};
  }
  throw new Error(`no such op: ${op}`);
}

const say = (said) => process.stdout.write(JSON.stringify(said) + "\n");
say({ ready: true, library: `redis ${version}` });
for await (const line of createInterface({ input: process.stdin })) {
  let request = {};
  try {
    request = JSON.parse(line);
    say({ ok: true, ...(await answer(request)) });
  } catch (error) {
    say({ ok: false, error: String(error) });
  }
  if (request.op === "quit") break;
}
process.exit(0);
