"""A router without an engine: `fake_router.py PORT URL...` passes each GET request on to one of the servers.

It tries the servers in turn until one answers; `/health` says whether one of them is healthy. TERM closes its
port and lets begun requests finish.
"""

import signal
import sys
import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    port, *urls = sys.argv[1:]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for url in urls:
                try:
                    with urllib.request.urlopen(url + self.path) as answer:
                        return self._answer(answer.status, answer.read())
                except urllib.error.HTTPError as error:
                    if self.path != "/health":
                        return self._answer(error.code, b"")
                except (OSError, HTTPException):
                    continue  # the next server
            return self._answer(503, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = False
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    server.server_close()


main()
