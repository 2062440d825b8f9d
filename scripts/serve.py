"""A model over HTTP, streamed: python scripts/serve.py <checkpoint, run, export or last> [port]

    curl -N localhost:8000 -d '{"prompt": "def main():", "max_new_tokens": 100, "temperature": 0.8}'

One request at a time, on this machine only, for a try; a server for many users is another tool's
work.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from litmegalodon.inference import Reader, load_model
from litmegalodon.utils.errors import one_line


def server(model: Any, tokenizer: Any, port: int = 8000) -> HTTPServer:
    """A server of one model; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = dict(json.loads(body))
                reader = Reader(model, tokenizer)
                reader.read(asked.pop("prompt", ""))
                texts = reader.generate(**asked)
            except (ValueError, TypeError) as error:
                return self.send_error(400, " ".join(str(error).split())[:200])
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            for text in texts:
                self.wfile.write(text.encode())
                self.wfile.flush()

    return HTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    with one_line():
        if not 2 <= len(sys.argv) <= 3:
            raise ValueError(
                "checkpoint: must be given, and a port may: scripts/serve.py last 8000"
            )
        with server(*load_model(sys.argv[1]), int((sys.argv[2:] or ["8000"])[0])) as serving:
            print(f"http://127.0.0.1:{serving.server_port}", flush=True)
            serving.serve_forever()
