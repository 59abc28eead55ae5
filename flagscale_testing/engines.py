"""How vLLM's engines run in tests: small ones, several beside each other, on the same few cores."""

from __future__ import annotations

from collections.abc import Mapping

ENVIRONMENT: Mapping[str, str] = {
    # Otherwise each engine binds itself to the same first cores and leaves the others idle.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # vLLM compiles a function for log-probabilities, also with `enforce_eager`: a minute of g++.
    "TORCHDYNAMO_DISABLE": "1",
}
