"""See check.sh: the readers against a Redis of their own, with no waltag in between."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))

# Name of the check, client, options, and whether the late writer's stale record is a hit afterwards.
CHECKS = [
    ("cashews", "cashews", {}, True),
    ("cashews-client-side", "cashews", {"client_side": True, "protocol": 2}, True),
    ("redis-tagged-cache", "redis-tagged-cache", {"namespace": "shop"}, True),
    ("fastapi-cache", "fastapi-cache", {"prefix": "app", "namespace": "cat"}, True),
    ("fastapi-cache-md5", "fastapi-cache", {"prefix": "app", "namespace": "cat", "key_builder": "default"}, True),
    ("cachalot", "django-cachalot", {}, True),
    ("cachalot-django", "django-cachalot", {"backend": "django", "key_prefix": "shop", "version": 2}, True),
    ("cacheops", "django-cacheops", {"prefix": "shop:"}, True),
    ("cacheops-insideout", "django-cacheops", {"insideout": True}, True),
    ("cacheops-cached-as", "django-cacheops", {"form": "cached_as"}, True),
    ("cacheops-keep-fresh", "django-cacheops", {"keep_fresh": True}, False),
    ("cacheops-insideout-keep-fresh", "django-cacheops", {"keep_fresh": True, "insideout": True}, False),
]


class Reader:
    def __init__(self, directory, client, url, options):
        python = os.path.join(directory, "venv-" + client, "bin", "python")
        if not os.path.exists(python):
            python = os.path.join(directory, "venv", "bin", "python")
        command = [python, "-B", os.path.join(HERE, "reader.py"), "--client", client, "--url", url]
        command += ["--options", json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self.answer()
        assert ready.get("ready") is True, ready
        self.library = ready["library"]

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

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(10)


def same(what, have, want):
    assert have == want, f"{what}: {have!r}, not {want!r}"


def records(reader, late):
    tags, other = ["CategoryModel.pk:15", "type:7"], ["CategoryModel.pk:16"]

    def get(key):
        return reader.do("get", key=key)["value"]

    same("nothing", get("page"), None)
    for value in ("one", "zwei ä € 2"):
        reader.do("set", key="page", value=value, tags=tags, timeout=60)
        reader.do("set", key="other", value="b", tags=other, timeout=60)
        same("set", get("page"), value)
        reader.do("invalidate", tags=tags[:1])
        same("invalidated", get("page"), None)
    if "fastapi" not in reader.library:
        same("another tag", get("other"), "b")
    # In time: nothing happens while it computes.
    reader.do("begin", key="page", tags=tags, timeout=60)
    same("while it computes", get("page"), None)
    reader.do("finish", key="page", value="three")
    same("finished", get("page"), "three")
    assert not reader.ask("begin", key="page", tags=tags)["ok"], "began on a hit"
    reader.do("invalidate", tags=tags[1:])
    same("by its second tag", get("page"), None)
    # Late: the tag is invalidated while it computes.
    reader.do("begin", key="page", tags=tags, timeout=60)
    reader.do("invalidate", tags=tags[:1])
    reader.do("finish", key="page", value="late")
    same("late", get("page"), "late" if late else None)
    reader.do("invalidate", tags=tags[:1])
    same("repeated", get("page"), None)


def queries(reader, late):
    table = "second_model"
    row = {"id": 1, "category_id": 15, "type_id": 7, "name": "a", "status": None}

    def query(hit, *names, **filter):
        answer = reader.do("query", table=table, filter=filter)
        same("names", [found["name"] for found in answer["value"]], list(names))
        same("rows", answer["rows"], len(names))
        same(f"hit of {filter}", answer["hit"], hit)

    reader.do("save", table="first_model", row={"id": 15, "name": "books"})
    reader.do("save", table=table, row=row)
    query(False, "a", category_id=15)
    query(True, "a", category_id=15)
    query(False, "a", category__name="books", status=None)
    query(True, "a", category__name="books", status=None)
    reader.do("invalidate", tags=[table])
    query(False, "a", category_id=15)
    query(True, "a", category_id=15)
    reader.do("save", table=table, row={"id": 1, "name": "b"})
    query(False, "b", category_id=15)
    query(True, "b", category_id=15)
    reader.do("save", table="first_model", row={"id": 15, "name": "films"})
    query(False, category__name="books", status=None)
    reader.do("delete", table=table, row={"id": 1})
    query(False, category_id=15)
    query(True, category_id=15)
    reader.do("save", table=table, row=row)
    if "cacheops" in reader.library:
        query(False, "a", type_id=7)
        reader.do("invalidate", table=table, rows=[{**row, "type_id": 8}])
        query(True, "a", type_id=7)
        reader.do("invalidate", table=table, rows=[row])
        query(False, "a", type_id=7)
    # In time, then late: the row changes when the old one has been read.
    reader.do("begin", table=table, filter={"category_id": 15})
    same("finished", reader.do("finish")["value"][0]["name"], "a")
    query(True, "a", category_id=15)
    reader.do("invalidate", tags=[table])
    reader.do("begin", table=table, filter={"category_id": 15})
    reader.do("save", table=table, row={"id": 1, "name": "new"})
    same("late", reader.do("finish")["value"][0]["name"], "a")
    query(late, "a" if late else "new", category_id=15)
    reader.do("invalidate", tags=[table])
    query(False, "new", category_id=15)


def check(directory, url, name, client, options, late):
    said = name
    try:
        reader = Reader(directory, client, url, options)
        said = f"{name} {reader.library}"
        try:
            (queries if client.startswith("django-") else records)(reader, late)
            assert not reader.ask("nonsense")["ok"], "did nonsense"
            reader.do("quit")
            same("exit status", reader.end(), 0)
        finally:
            if reader.process.poll() is None:
                reader.process.kill()
                reader.process.wait()
    except Exception as error:
        print(f"{said} FAILED {type(error).__name__}: {error}", flush=True)
        return False
    print(f"{said} ok", flush=True)
    return True


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="check.") as directory:
        server = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            # A database for each: the tables of the ORM have the same names.
            url = f"redis://127.0.0.1:{port}/"
            results = [check(sys.argv[1], f"{url}{db}", *one) for db, one in enumerate(CHECKS)]
        finally:
            server.terminate()
            server.wait()
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
