"""Rules for MLflow, to which a training sends its figures (`mlflow_tracking_uri`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from flagscale.errors import Violation

URI, EXPERIMENT, RUN_NAME = "mlflow_tracking_uri", "mlflow_experiment", "mlflow_run_name"
RUN_FILE = "mlflow_run_file"
USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"


def tracking_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) for MLflow that are wrong or have no effect; no text shows a password."""
    uri = values.get(URI)
    if not uri:
        for name in (EXPERIMENT, RUN_NAME, RUN_FILE):
            if values.get(name):
                yield name, f"`{name}` has no effect without `{URI}`"
        return
    try:
        parts = urlsplit(uri)
        has_user, host = parts.username is not None or parts.password is not None, parts.hostname
        host = None if parts.port == 0 else host  # `port` raises ValueError above 65535
    except ValueError:
        has_user, host, parts = False, None, urlsplit("http:")
    if has_user:
        instead = f"set {USER} and {PASSWORD} in the environment of this command"
        yield URI, f"`{URI}` contains a user or a password, but arguments are visible to others: {instead}"
    elif parts.scheme in ("http", "https") and not host:
        yield URI, f"`{URI}` is no address of a server; such as http://host:5000"
    elif parts.scheme in ("", "file") and not uri.startswith("databricks"):
        # mlflow 3.17, store/tracking/file_store.py: only with MLFLOW_ALLOW_FILE_STORE.
        instead = "start a server (`mlflow server`) and give its address, such as http://host:5000"
        yield URI, f"`{URI}` is a folder, to which MLflow no longer writes: {instead}"
