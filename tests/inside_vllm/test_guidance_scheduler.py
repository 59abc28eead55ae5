"""The scheduler with guidance: lockstep, admission, refusals and statistics, with a played worker."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from flagscale.errors import UserError
from flagscale_testing.played_scheduler import WRONG, PlayedScheduler, token
from vllm_flagscale.guidance import seams

Make = Callable[..., PlayedScheduler]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(config))

    def made(**settings: Any) -> PlayedScheduler:
        return PlayedScheduler(folder, **settings)

    return made


def complete(played: PlayedScheduler, name: str, tokens: int = 8) -> bool:
    return played.answers[name] == [token(name, at) for at in range(tokens)]


SETTINGS = {
    "async": {},
    "sync": {"async_scheduling": False},
    "cache": {"enable_prefix_caching": True, "blocks": 30},
    "chunks": {"max_num_batched_tokens": 8, "max_num_seqs": 8, "async_scheduling": False},
    "two-places": {"max_num_seqs": 2, "enable_prefix_caching": True},
    "three-places": {"max_num_seqs": 3},
    "few-blocks": {"blocks": 11, "enable_prefix_caching": True},
    "few-blocks-sync": {"blocks": 11, "async_scheduling": False},
    "few-blocks-chunks": {"blocks": 11, "max_num_batched_tokens": 8, "max_num_seqs": 5},
    "priority": {"blocks": 13, "scheduling_policy": "priority"},
    "priority-sync": {"blocks": 13, "scheduling_policy": "priority", "async_scheduling": False},
    "adapters": {"blocks": 16, "enable_lora": True, "max_loras": 2, "max_cpu_loras": 4},
}


FAST = ("async", "chunks", "few-blocks", "priority-sync", "adapters")
"""The settings that differ most; the others are combinations of the same."""


@pytest.mark.parametrize(
    "name", [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in SETTINGS]
)
def test_rows_stay_in_lockstep_through_trouble(make: Make, name: str) -> None:
    settings = SETTINGS[name]
    rng = random.Random(name)
    played = make(**settings)
    names = [f"r{at}" for at in range(60)]
    waiting, aborted, running = names[::-1], set(), set()

    def trouble() -> None:
        while waiting and rng.random() < 0.4:
            one = waiting.pop()
            prompt, negative = (
                [rng.choice((3, 4))] * rng.choice((1, 1, 2, 16, 17, 33, 40)) for _ in range(2)
            )
            played.add(
                one,
                prompt,
                negative if rng.random() < 0.7 else None,
                priority=rng.randrange(3),
                adapter=rng.randrange(4) if "enable_lora" in settings else 0,
                max_tokens=rng.choice((1, 2, 8, 30)),
            )
            running.add(one)
        if running and rng.random() < 0.03:
            one = rng.choice(sorted(running))
            played.abort(one)
            aborted.add(one)
            running.discard(one)
        if rng.random() < 0.01:
            played.scheduler.reset_prefix_cache(reset_running_requests=True)

    trouble()
    while waiting or played.scheduler.has_requests():
        played.run(each=trouble)
        trouble()

    assert [one for one in names if not played.is_right(one)] == []
    assert {*played.ended} >= {*names} - aborted
    assert not any(one.endswith("!twin") for one in (*played.answers, *played.ended))
    assert played.remains() == []


@pytest.mark.parametrize("prompt", [1, 20, 40])
@pytest.mark.parametrize("negative", [1, 20, 40])
def test_a_row_that_samples_does_so_with_its_partner(make: Make, prompt: int, negative: int) -> None:
    played = make(max_num_batched_tokens=16, max_num_seqs=4, async_scheduling=False)
    played.add("one", [3] * prompt, [4] * negative)
    steps = played.run()
    assert complete(played, "one")
    assert played.alone == 0
    # No step is lost: chunks of 16 tokens of the prompts, 8 tokens one by one, and one step to clean up.
    assert steps <= -(-(prompt + negative) // 16) + 8 + 1


def test_what_a_row_draws_alone_reaches_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    played = make(blocks=9, async_scheduling=False)
    played.add("one", [3] * 30, [4] * 30, max_tokens=30)
    played.add("two", [5] * 30, [6] * 30, max_tokens=30)
    played.run()
    assert played.scheduler.capacity.most_tokens(30, 30) == 35
    assert complete(played, "one", 30)
    assert complete(played, "two", 30)
    assert all(WRONG not in tokens for tokens in played.answers.values())


def test_a_long_request_before_the_waiting_half_ends_in_no_deadlock(make: Make) -> None:
    # The ordinary request needs the whole cache, and the prompts of one token sample as soon as they enter.
    played = make(blocks=9, async_scheduling=False)
    played.add("first", [3], [4])
    guided = played.scheduler.guided["first"]
    played.scheduler.waiting.remove_request(guided.twin)
    played.add("long", [5] * 120, max_tokens=8)
    played.scheduler.waiting.add_request(guided.twin)
    played.run(steps=200)
    assert complete(played, "first")
    assert complete(played, "long")


def test_ordinary_requests_do_not_take_every_free_place_from_a_guided_one(make: Make) -> None:
    played = make(max_num_seqs=2, async_scheduling=False)
    for at in range(2):
        played.add(f"before-{at}", [3] * 5, max_tokens=4 + at)
    played.add("guided", [3] * 5, [4] * 7)
    for at in range(40):
        played.add(f"after-{at}", [3] * 5, max_tokens=4 + at % 2)
    steps = 0
    while "guided" not in played.ended:
        played.step()
        steps += 1
    assert steps < 20
    assert complete(played, "guided")


def test_a_guided_request_goes_on_in_a_paused_engine_once_half_of_it_runs(make: Make) -> None:
    played = make(max_num_batched_tokens=16, max_num_seqs=4, async_scheduling=False)
    played.add("one", [3] * 30, [4] * 30)
    played.step()
    assert played.scheduler.guided["one"].is_half_admitted
    played.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    played.add("later", [3] * 5, [4] * 5)
    for _ in range(30):
        played.step()
    assert complete(played, "one")
    assert played.answers["later"] == []


def test_an_adapter_keeps_its_place_while_its_request_is_held(make: Make) -> None:
    played = make(
        max_num_batched_tokens=16,
        max_num_seqs=4,
        enable_lora=True,
        max_loras=1,
        max_cpu_loras=2,
        async_scheduling=False,
    )
    played.add("guided", [3] * 5, [4] * 60, adapter=1)
    played.add("other", [5] * 5, adapter=2)
    played.run()
    assert complete(played, "guided")
    assert complete(played, "other")


def test_a_prompt_that_is_in_the_cache_leaves_two_tokens_to_compute(make: Make) -> None:
    played = make(enable_prefix_caching=True)
    for name in ("first", "again"):
        played.add(name, [3] * 33, [4] * 17)
        played.run()
        assert complete(played, name)
    assert played.stats.num_running_reqs == 0
    assert played.ended["again"].finish_reason.name == "LENGTH"


def test_the_answer_ends_where_the_longer_prompt_leaves_no_room(make: Make) -> None:
    played = make()
    played.add("long", [3] * 10, [4] * 100, max_tokens=1000)
    played.run()
    assert complete(played, "long", 28)
    assert str(played.ended["long"].finish_reason) == "length"


@pytest.mark.parametrize(
    ("settings", "prompt", "negative", "named"),
    [
        ({"max_num_seqs": 1}, 5, 5, "`max_num_seqs` to at least 2"),
        ({"blocks": 9}, 100, 100, "do not fit into the KV cache"),
        ({}, 5, 128, "the negative prompt has 128 tokens"),
    ],
)
def test_a_guided_request_without_room_ends_with_the_reason(
    make: Make, settings: dict[str, Any], prompt: int, negative: int, named: str
) -> None:
    played = make(**settings)
    played.add("refused", [3] * prompt, [4] * negative)
    played.run()
    assert str(played.ended["refused"].finish_reason) == "error"
    assert named in played.ended["refused"].stop_reason
    played.add("ordinary", [3] * 5)
    played.run()
    assert complete(played, "ordinary")
    assert played.remains() == []


def test_a_guided_prompt_with_a_picture_ends_with_the_reason(make: Make) -> None:
    picture = MultiModalFeatureSpec(None, "image", "picture", PlaceholderRange(offset=1, length=2))
    played = make()
    played.add("refused", [3] * 5, [4] * 5, pictures=[picture])
    played.run()
    assert str(played.ended["refused"].finish_reason) == "error"
    assert "pictures" in played.ended["refused"].stop_reason
    assert played.remains() == []


def test_rows_that_differ_end_with_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import flagscale_testing.played_scheduler as module

    monkeypatch.setattr(module, "token", lambda name, number: 5 + name.endswith("!twin"))
    played = make(async_scheduling=False)
    played.add("guided", [3] * 5, [4] * 5)
    played.run()
    assert "different tokens" in played.ended["guided"].stop_reason
    assert played.remains() == []


def test_statistics_count_a_guided_request_once(make: Make) -> None:
    played = make(max_num_seqs=5, async_scheduling=False)
    for at in range(4):
        played.add(f"guided-{at}", [3] * 5, [4] * 5)
    played.add("ordinary", [3] * 5)
    played.step()
    played.step()
    counts = (
        played.stats.num_running_reqs,
        played.stats.num_waiting_reqs,
        played.stats.num_skipped_waiting_reqs,
    )
    assert counts == (2, 3, 0)
    assert len(played.scheduler.running) == 4


def test_the_recorded_seams_are_those_of_the_installed_engine() -> None:
    seams.check()


def test_a_method_that_differs_is_reported_with_the_supported_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def _preempt_request(self: Any, request: Any, when: float) -> None:
        raise NotImplementedError

    monkeypatch.setattr(Scheduler, "_preempt_request", _preempt_request)
    monkeypatch.delattr(Scheduler, "_reserve_prefill_lookahead")
    monkeypatch.setattr("vllm.__version__", "0.33.1")
    with pytest.raises(UserError) as refused:
        seams.check()
    message = str(refused.value)
    assert "guidance needs vLLM >=0.32,<0.33; this is 0.33.1" in message
    assert "_preempt_request` takes (self, request, when), not (self, request, timestamp, drop" in message
    assert "_reserve_prefill_lookahead` is missing" in message
    assert "remove `guidance`" in message


def test_an_attribute_that_is_gone_is_reported() -> None:
    scheduler = "vllm.v1.core.sched.scheduler:Scheduler"
    gone = [
        *seams.differences(
            {}, {scheduler: ("running", "gone")}, {"vllm.v1.engine:EngineCoreOutput": ("old",)}
        )
    ]
    assert gone == [f"`{scheduler}` has no `gone`", "`vllm.v1.engine:EngineCoreOutput` has no `old`"]
