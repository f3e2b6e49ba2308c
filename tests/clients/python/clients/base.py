"""What the clients have in common: options, the late writer, errors that a library only logs."""

import asyncio
import logging
import threading
from importlib import metadata

WAIT = 30  # seconds until a computation that does not start, or a store that does not end, is an error


class Base:
    """A client with `set`, `get`, `invalidate` and `remember`, as operations."""

    distribution = ""

    def __init__(self, url, options):
        self.url = url
        self.options = options
        self.late = {}

    def library(self):
        return f"{self.distribution} {metadata.version(self.distribution)}"

    def option(self, name, default=None):
        """Takes an option; those that nobody took are an error."""
        return self.options.pop(name, default)

    # What a client has to bring.

    def set(self, key, value, tags, timeout):
        raise NotImplementedError

    def get(self, key, tags):
        raise NotImplementedError

    def invalidate(self, tags):
        raise NotImplementedError

    def remember(self, request, compute):
        """The library's own get-or-compute form: calls compute() if and only if it misses, and stores the answer."""
        raise NotImplementedError

    # The operations.

    def op_set(self, request):
        self.set(request["key"], request["value"], request.get("tags", []), request.get("timeout", 600))

    def op_get(self, request):
        return {"value": self.get(request["key"], request.get("tags"))}

    def op_invalidate(self, request):
        self.invalidate(request["tags"])

    def op_begin(self, request):
        key = request.get("key", "")
        if key in self.late:
            raise ValueError(f"begun already: {key}")
        late = Late(lambda compute: self.remember(request, compute))
        late.begin()
        self.late[key] = late

    def op_finish(self, request):
        return self.late.pop(request.get("key", "")).finish(request.get("value"))

    def op_quit(self, request):
        pass


class Late:
    """A reader that has missed and whose computation is running, in a thread of its own."""

    def __init__(self, remember):
        self.remember = remember
        self.computing = threading.Event()
        self.computed = threading.Event()
        self.value = self.answer = self.error = None
        self.ended = False
        # A daemon: a computation that is never finished does not keep the process.
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            self.answer = self.remember(self.compute)
        except Exception as error:
            self.error = error
        finally:
            self.ended = True
            self.computing.set()

    def compute(self):
        self.computing.set()
        self.computed.wait()
        return self.value

    def begin(self):
        self.thread.start()
        if not self.computing.wait(WAIT):
            raise TimeoutError("the computation did not start")
        if self.error is not None:
            raise self.error
        if self.ended:
            raise RuntimeError("a hit: nothing is computed")

    def finish(self, value):
        self.value = value
        self.computed.set()
        self.thread.join(WAIT)
        if self.thread.is_alive():
            raise TimeoutError("the library did not come back")
        if self.error is not None:
            raise self.error
        return self.answer if isinstance(self.answer, dict) else None


class Loop:
    """An event loop in a thread, for the asynchronous libraries."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()


class Complaints(logging.Handler):
    """For libraries that go on without the cache when it fails: what they log is raised here."""

    def __init__(self, *loggers):
        super().__init__(logging.WARNING)
        self.said = []
        for name in loggers:
            logging.getLogger(name).addHandler(self)

    def emit(self, record):
        error = record.exc_info[1] if record.exc_info else None
        self.said.append(f"{record.getMessage()} {error or ''}".strip())

    def check(self):
        said, self.said = self.said, []
        if said:
            raise RuntimeError("; ".join(said))
