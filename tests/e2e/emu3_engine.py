"""Draws and answers with a tiny Emu3, by transformers and by engines; prints JSON. Run by `test_emu3_engine`.

emu3_engine.py FOLDER SETTINGS    # the folder to make, and a JSON list of an engine's arguments
"""

from __future__ import annotations

import gc
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flagscale.checks.emu3 import AREA, grid_of
from flagscale.checks.emu3_folder import positions_of
from flagscale_testing.ahead import scheduler
from flagscale_testing.emu3 import IMAGE_AREA
from flagscale_testing.emu3_reference import Drawn, Reference
from tools.emu3 import tiny
from vllm_flagscale.emu3.prompts import (
    NEGATIVE,
    SUFFIX,
    chat_template,
    picture_request,
    question_text,
)

CASES = (
    ("a portrait of young girl.", "1:1", 3.0),
    ("a shiba inu", "16:9", 3.0),
    ("cat", "3:4", 3.0),
    ("a dog in the snow", "1:3", 7.5),
    ("the image", "9:16", 1.0),
)
LENGTH, ANSWER = 512, 12
ENGINE = {
    "dtype": "float32",
    "max_model_len": LENGTH,
    "enforce_eager": True,
    "seed": 0,
    "kv_cache_memory_bytes": 32 << 20,
    "limit_mm_per_prompt": {"image": 2},
    "disable_log_stats": False,
    "worker_extension_cls": "vllm_flagscale.emu3.decoder.PictureDecoder",
    "logits_processors": [
        "vllm_flagscale.emu3.processor:GridProcessor",
        "vllm_flagscale.guidance.processor:GuidedProcessor",
    ],
}


def noise(seed: int, height: int, width: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


class Expected:
    """What transformers draws and answers."""

    def __init__(self, folder: Path) -> None:
        self.reference = Reference(folder)
        self.tokenizer = self.reference.processor.tokenizer
        self.drawn = [
            self.reference.draw(text + SUFFIX, ratio, scale=scale, negative=NEGATIVE)
            for text, ratio, scale in CASES
        ]
        pictures = [noise(0, 64, 48), noise(1, 40, 80)]
        self.questions = [
            (question_text(self.tokenizer, "Please describe the image"), pictures[:1]),
            (question_text(self.tokenizer, "Please describe both", 2), pictures),
        ]
        bos = self.tokenizer.bos_token
        self.answers = [
            self.reference.answer(text.removeprefix(bos), shown, ANSWER) for text, shown in self.questions
        ]

    def facts(self) -> dict[str, Any]:
        """Return what transformers does that our own rules repeat, or deviate from."""
        from transformers import Emu3Config

        processor = self.reference.processor
        rounds_alike = all(
            processor.calculate_generate_size(ratio, area, 8) == (grid.height, grid.width)
            for area in (AREA, IMAGE_AREA, 1024 * 1024, 300_000)
            for ratio in (f"{width}:{height}" for width in range(1, 33) for height in range(1, 33))
            if (grid := grid_of(ratio, area))
        )
        defaults = Emu3Config()
        shown = self.questions[1][1]
        sizes = [
            processor.image_processor(pictures, return_tensors="pt")["pixel_values"].shape
            for pictures in (shown, shown[:1])
        ]
        return {
            "ratios round alike": rounds_alike,
            "default positions": defaults.text_config.max_position_embeddings == positions_of({}),
            "default codes": defaults.vq_config.codebook_size,
            "default levels": len(defaults.vq_config.channel_multiplier),
            "pads to the largest": [list(size) for size in sizes],
            "chats alike": self._chat(None)
            == self.tokenizer(question_text(self.tokenizer, "Why?", 0)).input_ids,
            "BOS of a template with BOS": self._chat(chat_template(None)).count(self.tokenizer.bos_token_id),
            "refused": [*self._refused_texts()],
        }

    def _chat(self, template: str | None) -> list[int]:
        """Return the tokens of a question without a picture, by transformers' processor."""
        messages = [{"role": "user", "content": "Why?"}]
        chat = self.reference.processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return [int(one) for one in chat["input_ids"][0]]

    def _refused_texts(self) -> Iterator[str]:
        """Yield why prompts are refused."""
        for prompt, given in (
            (" ", {}),
            ("a cat", {"negative": ""}),
            ("a <|image start|>", {}),
            ("a cat", {"negative": "bad <|visual token 000001|>"}),
            ("a cat " * 400, {}),
            ("a cat", {"suffix": " <image>"}),
            ("a \ud800 cat", {}),
        ):
            try:
                picture_request(self.tokenizer, prompt, grid_of("1:1", IMAGE_AREA), LENGTH, **given)
            except ValueError as error:
                yield str(error)
        for question in ("", "what is <image>?"):
            try:
                question_text(self.tokenizer, question)
            except ValueError as error:
                yield str(error)


def run(folder: Path, expected: Expected, settings: dict[str, Any]) -> dict[str, Any]:
    """Return how an engine compares with transformers."""
    from vllm import LLM, SamplingParams

    named = scheduler(settings.get("async_scheduling", True))
    llm = LLM(model=str(folder), **{**ENGINE, "scheduler_cls": named, **settings})
    requests = [
        picture_request(expected.tokenizer, text, grid_of(ratio, IMAGE_AREA), LENGTH, scale=scale)
        for text, ratio, scale in CASES
    ]
    prompts: list[Any] = [{"prompt_token_ids": [*one.prompt]} for one in requests]
    prompts += [{"prompt": text, "multi_modal_data": {"image": shown}} for text, shown in expected.questions]
    greedy = SamplingParams(temperature=0, max_tokens=ANSWER)
    sampling = [*(one.sampling(temperature=0, top_k=0) for one in requests), greedy, greedy]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    tokens = [[*one.outputs[0].token_ids] for one in outputs]
    text, shown = expected.questions[0]
    without = {
        "prompt": text.removeprefix(expected.tokenizer.bos_token),
        "multi_modal_data": {"image": shown},
    }
    bare = llm.generate([without], greedy, use_tqdm=False)[0]
    alone = drawn_with_seed(llm, requests[3])
    return {
        "prompts": [
            [*one.prompt] == drawn.prompt and [*one.negative] == drawn.negative
            for one, drawn in zip(requests, expected.drawn, strict=True)
        ],
        "drawn": [one == drawn.tokens for one, drawn in zip(tokens, expected.drawn, strict=False)],
        "reasons": [one.outputs[0].finish_reason for one in outputs],
        "answers": [one == right for one, right in zip(tokens[len(CASES) :], expected.answers, strict=True)],
        "lost without BOS": len(outputs[len(CASES)].prompt_token_ids) - len(bare.prompt_token_ids),
        "differs without BOS": [*bare.outputs[0].token_ids] != expected.answers[0],
        "pixels": [*differences(llm, expected.drawn)],
        "refused": refusals(llm, expected.drawn[0]),
        "seeds": [alone == drawn_with_seed(llm, requests[3], *requests[:3]), len({*map(tuple, alone)})],
        "preemptions": sum(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions"),
        "left": llm.llm_engine.get_num_unfinished_requests(),
    }


def drawn_with_seed(llm: Any, request: Any, *others: Any) -> list[list[int]]:
    """Return the tokens of three pictures of one seed, streamed, while the engine draws others too."""
    from vllm.sampling_params import RequestOutputKind

    asked = [(request, {"n": 3, "seed": 7}), *((other, {}) for other in others)]
    for number, (one, given) in enumerate(asked):
        sampling = one.sampling(output_kind=RequestOutputKind.DELTA, **given)
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": [*one.prompt]}, sampling)
    streamed: list[list[int]] = [[], [], []]
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.request_id == "0":
                for one in output.outputs:
                    streamed[one.index] += one.token_ids
    return streamed


def differences(llm: Any, drawn: list[Drawn]) -> Iterator[tuple[list[int], int]]:
    """Yield the shape of each decoded picture, and how far its values are from those of transformers."""
    for one in drawn:
        png = llm.collective_rpc("decode_picture", args=(one.tokens, list(one.grid)))[0]
        decoded = np.asarray(Image.open(io.BytesIO(png))).astype(int)
        yield list(decoded.shape), int(np.abs(decoded - one.picture).max())


def refusals(llm: Any, drawn: Drawn) -> list[str]:
    """Return why tokens that are no picture are not decoded."""
    height, width = drawn.grid
    messages = []
    for tokens, grid in ((drawn.tokens[:-1], (height, width)), ([*range(1, 7)], (1, 2))):
        try:
            llm.collective_rpc("decode_picture", args=(tokens, list(grid)))
        except ValueError as error:
            messages.append(str(error))
    return messages


def main() -> None:
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    sys.argv[1:] = ["--output", str(folder)]
    tiny.main()
    expected = Expected(folder)
    engines = []
    for settings in asked:
        engines.append(run(folder, expected, settings))
        gc.collect()  # the last engine has to give its memory back
    print(json.dumps({"facts": expected.facts(), "engines": engines}))


if __name__ == "__main__":
    main()
