"""The load that a server reports in Prometheus format."""

from __future__ import annotations

from flagscale.node.health import Load, check, load, parse_load

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 2.0
vllm:num_requests_running{engine="1",model_name="a b"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a b"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a b",reason="capacity"} 9.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="a b"} 100.0
vllm:generation_tokens_total{engine="1",model_name="a b"} 20.5
vllm:prompt_tokens_total{engine="0",model_name="a b"} 7.0
vllm:prompt_tokens_total_created{engine="0"} 1.7e9
process_open_fds 33.0
"""


def test_the_load_is_the_sum_over_all_engines() -> None:
    assert parse_load(METRICS, 5.0) == Load(running=3, waiting=4, generated=120.5, prompted=7.0, time=5.0)


def test_requests_whose_pictures_are_decoded_are_running() -> None:
    """The engine has finished them; a stop would cut them after a few seconds."""
    found = parse_load(f"{METRICS}flagscale:pictures_decoding 2.0\n", 5.0)
    assert found == Load(running=5, waiting=4, generated=120.5, prompted=7.0, time=5.0)


def test_a_server_that_does_not_report_its_requests_is_not_taken_for_idle() -> None:
    """vLLM does not with `disable_log_stats`; a stop would cut its requests after a few seconds."""
    assert parse_load("process_open_fds 33.0\nvllm:generation_tokens_total{} 1.0\n", 5.0) is None


def test_a_missing_server_is_not_healthy_and_has_no_load() -> None:
    assert check("http://127.0.0.1:1") is None
    assert load("http://127.0.0.1:1") is None
