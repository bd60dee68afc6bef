"""A chat completions endpoint that answers as a script says: what a broken or busy server would send."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG = "hang"


def says(content: str | None = None, *calls: tuple[str, Any], reason: str = "stop") -> dict[str, Any]:
    """A completion with this text and these calls (name, arguments: JSON text or what it stands for)."""
    named = [
        {
            "id": f"call{i}",
            "type": "function",
            "function": {"name": name, "arguments": text if isinstance(text, str) else json.dumps(text)},
        }
        for i, (name, text) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content} | ({"tool_calls": named} if named else {})
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


def prescribes(vasopressor: Any = 1, iv_fluid: Any = 1, **more: Any) -> dict[str, Any]:
    return says(None, ("prescription", {"vasopressor": vasopressor, "iv_fluid": iv_fluid} | more))


def simulates(*actions: Any) -> dict[str, Any]:
    return says(None, ("simulation", {"actions": list(actions)}))


@contextlib.contextmanager
def serving(script: Callable[[dict[str, Any], int], Any]) -> Any:
    """(base URL, requests so far) of a server whose `script(request, number)` gives a completion, (status, text), or
    HANG, which never answers."""
    requests: list[dict[str, Any]] = []
    over, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(requests)
                requests.append(body)
            answer = script(body, number)
            if answer == HANG:
                while not over.is_set():
                    time.sleep(0.01)
                return
            status, text = answer if isinstance(answer, tuple) else (200, json.dumps(answer))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
