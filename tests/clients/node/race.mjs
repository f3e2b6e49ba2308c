// The two forms of `begin`, `finish` and `compute`.

// For a library that has a get-or-compute: `run(key, tags, timeout, compute)` calls it, with `compute` as the function
// that computes, and its promise must end only when the library has stored the value.
export function computing(run) {
  const running = new Map();
  return {
    async begin(key, tags, timeout) {
      let started;
      let release;
      const computation = new Promise((resolve) => (started = resolve));
      const value = new Promise((resolve) => (release = resolve));
      const done = run(key, tags, timeout, () => {
        started();
        return value;
      });
      done.catch(() => {}); // `finish` tells it
      await Promise.race([
        computation,
        done.then((found) => {
          throw new Error(`not a miss: ${found}`);
        }),
      ]);
      running.set(key, { release, done });
    },
    async finish(key, value) {
      const { release, done } = taken(running, key);
      release(value);
      await done;
    },
    compute: (key, value, tags, timeout) => run(key, tags, timeout, async () => value),
  };
}

// For a library that has only get and set: the application gets, computes and sets. `mark` is what the application takes
// before its computation and gives to `set` after it, if there is such a thing.
export function getting(get, set, mark = () => undefined) {
  const running = new Map();
  return {
    async begin(key, tags, timeout) {
      const marked = mark();
      const found = await get(key, tags);
      if (found !== undefined && found !== null) throw new Error(`not a miss: ${found}`);
      running.set(key, { tags, timeout, marked });
    },
    async finish(key, value) {
      const { tags, timeout, marked } = taken(running, key);
      await set(key, value, tags, timeout, marked);
    },
    async compute(key, value, tags, timeout) {
      const marked = mark();
      const found = await get(key, tags);
      if (found !== undefined && found !== null) return found;
      await set(key, value, tags, timeout, marked);
      return value;
    },
  };
}

function taken(running, key) {
  const found = running.get(key);
  if (!found) throw new Error(`no begin for ${key}`);
  running.delete(key);
  return found;
}
