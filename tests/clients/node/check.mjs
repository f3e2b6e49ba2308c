// The work of check.sh: a private Redis, and a reader.mjs for each client and each set of options.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const CLIENTS = {
  "nextjs-neshca": [{}, { keyPrefix: "n:", kind: "APP_PAGE" }],
  "nextjs-fortedigital": [{}, { keyPrefix: "n:", kind: "APP_PAGE" }],
  "nextjs-turbo": [{}, { keyPrefix: "n:", kind: "APP_PAGE" }],
  "nextjs-turbo-use-cache": [{}, { keyPrefix: "n:" }],
  "nextjs-cache-components": [{}, { keyPrefix: "n:", tagPrefix: "t:" }],
  bentocache: [{}, { l1: true }, { l1: true, prefix: "p", namespace: "users", store: "other" }],
  "async-cache-dedupe": [{}, { name: "other", referencesTTL: 600 }],
  cacheable: [{}, { l1: false, namespace: "n", createKeyv: true }],
  "layered-loader": [{}, { l1: true, prefix: "p", channel: "c", groupTtl: 600 }],
  "envelop-response-cache": [{}, { prefix: "p:" }],
  medusa: [{}, { prefix: "p:", compressionThreshold: 1 }],
  "redis-tag-cache": [{}, { keyPrefix: "p:" }],
  vendure: [{}, { namespace: "n" }],
};
const tags = ["CategoryModel.pk:15"];
const here = import.meta.dirname;
const [dir, ...names] = process.argv.slice(2);

const unused = async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
};

async function startRedis(home) {
  const port = await unused();
  const args = ["--port", String(port), "--bind", "127.0.0.1", "--save", "", "--dir", home];
  const redis = spawn("redis-server", args, { stdio: "ignore" });
  redis.on("error", (error) => {
    console.error(`redis-server: ${error.message}`);
    process.exit(1);
  });
  for (let tries = 0; tries < 200; tries++) {
    const up = await new Promise((done) => {
      const socket = createConnection(port, "127.0.0.1", () => done(true)).on("error", () => done(false));
      socket.on("connect", () => socket.end());
    });
    if (up) return { redis, port };
    await new Promise((done) => setTimeout(done, 25));
  }
  redis.kill();
  throw new Error("redis-server does not answer");
}

class Reader {
  constructor(name, url, options) {
    const args = ["reader.mjs", "--modules", dir, "--client", name, "--url", url, "--options", JSON.stringify(options)];
    this.process = spawn(process.execPath, args, { cwd: here, stdio: ["pipe", "pipe", "pipe"] });
    this.log = "";
    this.process.stderr.on("data", (data) => (this.log += data));
    this.process.stdin.on("error", () => {});
    this.lines = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
  }

  async answer() {
    const timer = setTimeout(() => this.process.kill(), 20000);
    const { value, done } = await this.lines.next();
    clearTimeout(timer);
    if (done) throw new Error(`no answer; ${this.log.trim().split("\n").at(-1)}`);
    return JSON.parse(value);
  }

  async ask(op, fields = {}) {
    this.process.stdin.write(JSON.stringify({ op, ...fields }) + "\n");
    const { ok, error, ...rest } = await this.answer();
    if (!ok) throw new Error(`${op}: ${error}`);
    return rest;
  }

  async expect(key, wanted) {
    const { value } = await this.ask("get", { key, tags });
    if (value !== wanted) throw new Error(`${key} is ${JSON.stringify(value)}, not ${JSON.stringify(wanted)}`);
  }
}

async function check(reader) {
  const key = "a key";
  await reader.expect(key, null);
  await reader.ask("set", { key, value: "one é", tags, timeout: 600 });
  await reader.expect(key, "one é");
  await pause();
  await reader.ask("invalidate", { tags });
  await reader.expect(key, null);
  await pause();
  await reader.ask("set", { key, value: "two", tags, timeout: 600 });
  await reader.expect(key, "two");
  await reader.ask("begin", { key: "late", tags, timeout: 600 });
  await reader.ask("finish", { key: "late", value: "three" });
  await reader.expect("late", "three");
  const computed = await reader.ask("compute", { key: "now", value: "four", tags, timeout: 600 });
  if (computed.value !== "four") throw new Error(`computed ${computed.value}`);
  await reader.expect("now", "four");
  await pause();
  await reader.ask("invalidate", { tags });
  for (const name of [key, "late", "now"]) await reader.expect(name, null);
  await reader.ask("set", { key: "forever", value: "five", tags });
  const [code] = await Promise.all([once(reader.process, "exit").then(([code]) => code), reader.ask("quit")]);
  if (code !== 0) throw new Error(`exit code ${code}`);
}

// Stamps are of a millisecond: what is written within the one of an invalidation may count as older or as newer.
const pause = () => new Promise((done) => setTimeout(done, 5));

const home = mkdtempSync(join(tmpdir(), "waltag-clients-"));
const { redis, port } = await startRedis(home);
let failures = 0;
let db = 0;
try {
  for (const [name, variants] of Object.entries(CLIENTS)) {
    if (names.length && !names.includes(name)) continue;
    let library = "?";
    let result = "ok";
    for (const options of variants) {
      const reader = new Reader(name, `redis://127.0.0.1:${port}/${db++ % 16}`, options);
      try {
        const first = await reader.answer();
        if (!first.ready) throw new Error(first.error);
        library = first.library;
        await check(reader);
      } catch (error) {
        result = `FAILED with ${JSON.stringify(options)}: ${error.message}`;
        break;
      } finally {
        reader.process.kill();
      }
    }
    if (result !== "ok") failures++;
    console.log(`${name} ${library} ${result}`);
  }
} finally {
  redis.kill();
  await once(redis, "exit");
  rmSync(home, { recursive: true });
}
process.exit(failures ? 1 : 0);
