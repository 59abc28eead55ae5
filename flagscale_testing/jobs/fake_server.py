"""A server without an engine: `fake_server.py PORT BEHAVIOUR...`; it answers `/health` and `/metrics`, and
`/slow/S`, with its port, after S seconds; `/exit/N` ends it with code N; `/echo` returns the request;
`/stream/N` sends N pieces, 0.1 s apart.

Behaviours: `late:S` answers after S seconds; `raise` fails like an engine; `child` starts a process that
ignores TERM; `exit:N:S` ends with code N after S seconds; `progress:D:T` reports that D of T are done; `sick`
is unhealthy from its second answer on; `bind:ADDRESS` listens on that address; `noisy` prints more than a
pipe holds; `harmless` prints the traceback of an error and goes on; `raise_when_asked:N` fails at the Nth
health check; `once:FILE` fails if FILE exists, and creates it; `drains` finishes begun requests after TERM;
`mistakes:N` reports N mistakes of the user and ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

METRICS = """\
# HELP vllm:num_requests_running Requests in the engine.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} %d
"""
TRACEBACK = "Traceback (most recent call last):\n  File x\n%s"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"


def main() -> None:
    port, *behaviours = sys.argv[1:]
    behaves = dict(behaviour.partition(":")[::2] for behaviour in behaviours)
    print(f"key {os.environ.get('VLLM_API_KEY')} device {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    if "child" in behaves:
        subprocess.Popen([sys.executable, "-S", "-c", DEAF])
    if "progress" in behaves:
        done, total = map(int, behaves["progress"].split(":"))
        with open(os.environ["FLAGSCALE_PROGRESS_FILE"], "w") as file:
            json.dump({"done": done, "total": total, "unit": "prompts", "tokens_per_s": 7.5}, file)
    if "mistakes" in behaves:
        lines = [f"flagscale: error: mistake {number}" for number in range(int(behaves["mistakes"]))]
        print("progress: 0%", "\n".join([*lines, *["shutting down"] * 30]), flush=True)
        sys.exit(2)
    if "exit" in behaves:
        code, seconds = behaves["exit"].split(":")
        time.sleep(float(seconds))
        sys.exit(int(code))
    if "raise" in behaves:
        try:
            raise ValueError("no such weights")
        except ValueError as error:
            raise RuntimeError("the engine did not start") from error
    if "once" in behaves:
        with open(behaves["once"], "x"):  # raises FileExistsError the second time
            pass
    if "noisy" in behaves:
        print("noise " * 100_000, flush=True)
    if "harmless" in behaves:
        print(TRACEBACK % "OSError: no matter", flush=True)
    time.sleep(float(behaves.get("late", 0)))
    last = int(behaves.get("raise_when_asked", 0))
    serve(behaves.get("bind", "127.0.0.1"), int(port), "sick" in behaves, last, "drains" in behaves)


def serve(address: str, port: int, sick: bool, last: int, drains: bool) -> None:
    begun, asked = time.monotonic(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += self.path == "/health"
            if asked == last:
                print(TRACEBACK % "RuntimeError: asked too often", flush=True)
                os._exit(1)
            is_metrics = self.path == "/metrics"
            text = METRICS % (100 * (time.monotonic() - begun)) if is_metrics else ""
            if self.path.startswith("/slow/"):
                print(f"begun {self.path}", flush=True)
                time.sleep(float(self.path.removeprefix("/slow/")))
                text = str(port)
            if self.path == "/echo":
                size = int(self.headers.get("Content-Length", 0))
                text = json.dumps([dict(self.headers), self.rfile.read(size).decode("latin-1")])
            if self.path.startswith("/stream/"):
                self.stream(int(self.path.removeprefix("/stream/")))
                return
            if self.path.startswith("/exit/"):
                os._exit(int(self.path.removeprefix("/exit/")))
            self.send_response(503 if sick and asked > 1 else 200)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def stream(self, pieces: int) -> None:
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Port", str(port))
            self.end_headers()
            for _ in range(pieces):
                self.wfile.write(b"1\r\n.\r\n")
                time.sleep(0.1)
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    if drains:
        server.daemon_threads = False
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    server.server_close()


main()
