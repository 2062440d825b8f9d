"""A model over HTTP, streamed: python scripts/serve.py <checkpoint, run, export or last> [port]

    curl -N localhost:8000 -d '{"prompt": "def main():", "max_new_tokens": 100, "temperature": 0.8}'

One request at a time, on this machine only, for a try; a server for many users is another tool's
work.
"""

import json
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from typing import Any

from litmegalodon import inference
from litmegalodon.utils.errors import one_line


def server(model: Any, tokenizer: Any, port: int = 8000) -> HTTPServer:
    """A server of one model; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        # So many seconds a silent client may keep the others waiting.
        timeout = 60

        def do_POST(self) -> None:
            # A client may leave in the middle of a text.
            with suppress(ConnectionError):
                self.answer()

        def answer(self) -> None:
            try:
                body = self.rfile.read(max(0, int(self.headers.get("Content-Length", 0))))
                asked = json.loads(body)
                if not isinstance(asked, dict) or not isinstance(asked.get("prompt", ""), str):
                    raise ValueError("the body must be a JSON object, and its prompt a text")
                reader = inference.Reader(model, tokenizer)
                reader.read(asked.pop("prompt", ""))
                texts = reader.generate(**asked)
                # Some mistakes show with the first token only.
                first = next(texts, "")
            except (ValueError, TypeError, RuntimeError) as error:
                # A status line is one line of ASCII.
                said = " ".join(str(error).split())[:200].encode("ascii", "replace")
                return self.send_error(400, said.decode())
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            for text in chain([first], texts):
                self.wfile.write(text.encode())
                self.wfile.flush()

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    with one_line():
        if not 2 <= len(sys.argv) <= 3:
            raise ValueError(
                "checkpoint: must be given, and a port may: scripts/serve.py last 8000"
            )
        port = (sys.argv[2:] or ["8000"])[0]
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"port={port}: must be a whole number, 0 (a free one) to 65535")
        with server(*inference.load_model(sys.argv[1]), int(port)) as serving:
            print(f"http://127.0.0.1:{serving.server_port}", flush=True)
            serving.serve_forever()
