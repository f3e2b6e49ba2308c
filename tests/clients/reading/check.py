"""See check.sh. What waltag would write is written here: SET <tag> <63 random bits> XX EX <ttl>."""

import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import redis

HERE = os.path.dirname(os.path.abspath(__file__))
TTL = 86400
FIRST, SECOND = "tag:CategoryModel.pk:15", "tag:TypeModel.pk:7"


class Reader:
    def __init__(self, name, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.answer()
        assert ready.get("ready") is True, ready
        self.name = f"{name} {ready['library']}"

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, op, **fields):
        self.process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def do(self, op, **fields):
        answer = self.ask(op, **fields)
        assert answer["ok"] is True, f"{op} {fields}: {answer.get('error')}"
        return answer

    def get(self, key):
        return self.do("get", key=key)["value"]

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(10)


def same(what, have, want):
    assert have == want, f"{what}: {have!r}, not {want!r}"


def invalidate(server, tag):
    return server.set(tag, secrets.randbits(63), xx=True, ex=TTL)


def check(server, reader, other):
    """`reader` and, where two have to agree, `other`."""
    server.flushdb()
    tags = [FIRST, SECOND]
    same("nothing", reader.get("page"), None)
    same("nothing is written at a miss", server.dbsize(), 0)

    # A hit; each of the tags makes it a miss.
    for tag in tags:
        reader.do("set", key="page", value="ein ä € \" {}", tags=tags, timeout=60)
        same("hit", reader.get("page"), "ein ä € \" {}")
        same("hit of the other", other.get("page"), "ein ä € \" {}")
        assert 0 < server.ttl("record:page") <= 60 and TTL - 60 < server.ttl(tag) <= TTL
        assert server.get(tag).isdigit() and int(server.get(tag)) < 2**63, server.get(tag)
        assert invalidate(server, tag)
        same("invalidated", (reader.get("page"), other.get("page")), (None, None))
    reader.do("set", key="long", value="x", tags=tags, timeout=10 * TTL)
    assert server.ttl("record:long") <= TTL, "lives longer than its tags"

    # No tags: only its life ends it.
    reader.do("set", key="plain", value="x", tags=[])
    same("without tags", (reader.get("plain"), other.get("plain")), ("x", "x"))

    # An absent version is a miss, and XX does not bring it back.
    reader.do("set", key="page", value="one", tags=tags)
    server.delete(SECOND)
    same("evicted", (reader.get("page"), other.get("page")), (None, None))
    assert not invalidate(server, SECOND), "revived"
    other.do("set", key="page", value="two", tags=tags)
    same("filled by the other", (reader.get("page"), other.get("page")), ("two", "two"))

    # A version that was evicted at once, before its reader read it back: absent then and absent now is a miss.
    server.delete(FIRST)
    for absent in (None, False):
        server.set("record:page", json.dumps({"tags": {FIRST: absent}, "value": "x"}))
        same(f"{absent} for a version", (reader.get("page"), other.get("page")), (None, None))

    # In time.
    invalidate(server, FIRST)
    reader.do("begin", key="page", tags=tags)
    reader.do("finish", key="page", value="three")
    same("in time", (reader.get("page"), other.get("page")), ("three", "three"))
    assert not reader.ask("begin", key="page", tags=tags)["ok"], "began on a hit"

    # Late: the tag changes while it computes; with the tags there, and with none there when it began.
    for absent in (False, True):
        invalidate(server, FIRST)
        if absent:
            server.delete(*tags)
        reader.do("begin", key="page", tags=tags)
        assert invalidate(server, FIRST), "no version was taken before the computation"
        reader.do("finish", key="page", value="late")
        same("late", (reader.get("page"), other.get("page")), (None, None))

    # Late, behind one that was not: the late record takes its place, and is a miss.
    if other is not reader:
        reader.do("begin", key="page", tags=tags)
        invalidate(server, FIRST)
        other.do("begin", key="page", tags=tags)
        other.do("finish", key="page", value="new")
        same("new", reader.get("page"), "new")
        reader.do("finish", key="page", value="late")
        same("late behind a new one", (reader.get("page"), other.get("page")), (None, None))

    # Late, and the version was evicted and made anew meanwhile: the invalidation itself found nothing to change.
    reader.do("begin", key="page", tags=tags)
    server.delete(*tags)
    assert not invalidate(server, FIRST)
    other.do("set", key="elsewhere", value="x", tags=tags)
    reader.do("finish", key="page", value="late")
    same("late over an eviction", (reader.get("page"), other.get("page")), (None, None))
    same("elsewhere", (reader.get("elsewhere"), other.get("elsewhere")), ("x", "x"))
    assert not reader.ask("nonsense")["ok"], "did nonsense"


def readers(url, build):
    """Name, command or None, and why not."""
    yield "reader.py", [sys.executable, "-B", os.path.join(HERE, "reader.py"), url], None
    php = shutil.which("php")
    if php and "redis" in subprocess.run([php, "-m"], capture_output=True, text=True).stdout.split():
        yield "reader.php", [php, os.path.join(HERE, "reader.php"), url], None
    else:
        yield "reader.php", None, "no php with phpredis"
    node, packages = shutil.which("node"), sys.argv[2] if len(sys.argv) > 2 else ""
    if node and os.path.isdir(os.path.join(packages, "node_modules", "redis")):
        yield "reader.mjs", [node, os.path.join(HERE, "reader.mjs"), url, packages], None
    else:
        yield "reader.mjs", None, "no node with the package redis"
    if shutil.which("go"):
        os.mkdir(os.path.join(build, "reading"))
        shutil.copy(os.path.join(HERE, "../../../docs/reading/reader.go"), os.path.join(build, "reading"))
        shutil.copy(os.path.join(HERE, "main.go"), build)
        with open(os.path.join(build, "go.mod"), "w") as module:
            module.write("module waltag.test/reading\n\ngo 1.18\n")
        environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOCACHE": os.path.join(build, "cache")}
        subprocess.run(["go", "vet", "./..."], cwd=build, env=environment, check=True)
        subprocess.run(["go", "build", "-o", "reader", "."], cwd=build, env=environment, check=True)
        yield "reader.go", [os.path.join(build, "reader"), url], None
    else:
        yield "reader.go", None, "no go"


def attempt(name, server, reader, other):
    try:
        check(server, reader, other)
        print(f"{name} ok", flush=True)
        return True
    except Exception as error:
        print(f"{name} FAILED {type(error).__name__}: {error}", flush=True)
        return False


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="check.") as directory:
        process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        running, good = [], True
        try:
            server = redis.Redis(port=port, db=2, decode_responses=True)
            for _ in range(100):
                try:
                    server.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            for name, command, why in readers(f"redis://127.0.0.1:{port}/2", directory):
                if command is None:
                    print(f"{name} skipped: {why}", flush=True)
                    continue
                try:
                    reader = Reader(name, command)
                except Exception as error:
                    print(f"{name} FAILED {type(error).__name__}: {error}", flush=True)
                    good = False
                    continue
                running.append(reader)
                good &= attempt(reader.name, server, reader, reader)
            for one, other in itertools.permutations(running, 2):
                good &= attempt(f"{one.name.split()[0]} with {other.name.split()[0]}", server, one, other)
            for reader in running:
                reader.do("quit")
                same(f"exit status of {reader.name}", reader.end(), 0)
        finally:
            for reader in running:
                if reader.process.poll() is None:
                    reader.process.kill()
            process.terminate()
            process.wait()
    sys.exit(not good)


if __name__ == "__main__":
    main()
