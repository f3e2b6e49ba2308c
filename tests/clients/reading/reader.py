"""docs/reading/reader.py as a program: the protocol is that of ../reader.py."""

import importlib.util
import json
import os
import sys
import threading

import redis

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True


class Miss(Exception):
    pass


def miss():
    raise Miss


def load():
    path = os.path.join(HERE, "../../../docs/reading/reader.py")
    spec = importlib.util.spec_from_file_location("reading", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get


def main():
    client = redis.Redis.from_url(sys.argv[1], decode_responses=True)
    get = load()
    late = {}

    def answer(request):
        op, key, tags = request["op"], request.get("key"), request.get("tags", [])
        if op == "set":
            client.delete("record:" + key)
            get(client, key, tags, lambda: request["value"], request.get("timeout", 600))
        elif op == "get":
            try:
                return {"value": get(client, key, [], miss)}
            except Miss:
                return {"value": None}
        elif op == "begin":
            began, go, values, ended = threading.Event(), threading.Event(), [], []

            def compute():
                began.set()
                go.wait()
                return values[0]

            def run():
                try:
                    get(client, key, tags, compute)
                finally:
                    ended.append(True)
                    began.set()

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            began.wait()
            if ended:
                raise RuntimeError("a hit: nothing is computed")
            late[key] = (go, values, thread)
        elif op == "finish":
            go, values, thread = late.pop(key)
            values.append(request["value"])
            go.set()
            thread.join()
        elif op != "quit":
            raise ValueError(f"no such op: {op}")
        return {}

    print(json.dumps({"ready": True, "library": f"redis-py {redis.__version__}"}), flush=True)
    for line in sys.stdin:
        request = {}
        try:
            request = json.loads(line)
            said = {"ok": True, **answer(request)}
        except Exception as error:
            said = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)
        if request.get("op") == "quit":
            break


main()
