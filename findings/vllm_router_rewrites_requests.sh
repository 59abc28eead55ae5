#!/usr/bin/env bash
# vllm-router 0.1.17, Python 3.12; seen on 2026-11-29.
#
# The router does not pass valid requests on as they are:
# - it reads a completion as a fixed set of fields and writes it anew: `temperature` is rounded to 32 bits, and
# fields that the client did not send are added (`no_stop_trim` is one that vLLM does not know)
# - an embedding request loses the fields that the router does not know, such as vLLM's `truncate_prompt_tokens`
# - on paths without a handler of their own, the header Authorization is lost: a server with an API key refuses them
#
# Output seen (sent | received):
#   temperature: 0.12345678901234568 | 0.12345679
#   added: echo ignore_eos no_stop_trim return_hidden_states skip_special_tokens stream
#   embeddings: input model truncate_prompt_tokens | input model
#   key on /v1/completions: Bearer k | Bearer k
#   key on /v1/responses: Bearer k | None
#   key on /v1/messages: Bearer k | None
#   key on /tokenize: Bearer k | None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet vllm-router==0.1.17
cat > "$folder/show.py" <<'PYTHON'
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's headers and body."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = json.dumps([{name.lower(): text for name, text in self.headers.items()}, body.decode()]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *words: object) -> None:
        pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
port = free_port()
words = ["--port", port, "--prometheus-port", free_port(), "--worker-urls", f"http://127.0.0.1:{server.server_port}"]
router = subprocess.Popen([sys.argv[1], *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def send(path: str, sent: dict[str, object]) -> tuple[dict[str, str], dict[str, object]]:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(sent).encode(), headers)
    for _ in range(100):
        try:
            found, body = json.load(urllib.request.urlopen(request, timeout=20))
            return found, json.loads(body)
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the router does not answer")


try:
    completion = {"model": "m", "prompt": "hello", "temperature": 0.12345678901234568}
    _, received = send("/v1/completions", completion)
    print(f"temperature: {completion['temperature']} | {received['temperature']}")
    print("added:", *sorted(received.keys() - completion.keys()))
    embedding = {"model": "m", "input": "hello", "truncate_prompt_tokens": 4}
    _, received = send("/v1/embeddings", embedding)
    print(f"embeddings: {' '.join(sorted(embedding))} | {' '.join(sorted(received))}")
    for path in ("/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"):
        headers, _ = send(path, {"model": "m", "prompt": "hello", "input": "hello", "messages": [], "max_tokens": 4})
        print(f"key on {path}: Bearer k | {headers.get('authorization')}")
finally:
    router.terminate()
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/venv/bin/vllm-router")
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
