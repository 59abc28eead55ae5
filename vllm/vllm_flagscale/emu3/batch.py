"""Batches of Emu3 for `vllm_flagscale.generate`: prompts to pictures, and questions about pictures."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.checks.emu3 import NEGATIVE, image_area
from flagscale.checks.emu3_folder import is_emu3
from flagscale.checks.guidance import Guidance
from flagscale.checks.picture_prompts import (
    IMAGE,
    Canvas,
    Drawing,
    PictureBatch,
    batch_violations,
    drawing_of,
    prompt_problems,
    question_of,
)
from flagscale.checks.prompts import Prompt
from flagscale.errors import Problem, UserError
from vllm_flagscale.emu3.pictures import PictureFiles
from vllm_flagscale.emu3.prompts import PictureRequest, picture_request
from vllm_flagscale.emu3.wiring import wire

_SEEDS = 2**31
"""The number of seeds of which one is drawn for a picture that is given none."""
_UNIT = "pictures"
Report = Callable[[int, int, float, str], None]
"""Called with what is done, its total, tokens per second, and what is counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the launcher passes on for the modes of Emu3."""
    parser.add_argument("--emu3", type=json.loads, help="keys of a batch of Emu3, as a JSON object")
    parser.add_argument("--images", nargs="+", default=(), help="pictures that questions are about")
    parser.add_argument("--pictures", help="the folder for pictures, beside the results")


def draws(arguments: argparse.Namespace) -> bool:
    """Return whether the prompts become pictures."""
    return bool(arguments.emu3) and arguments.emu3["mode"] == IMAGE


def as_questions(arguments: argparse.Namespace, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts as they are, or, if they are questions about pictures, as chats.

    Raises:
        UserError: with every question that cannot be used.
    """
    if not arguments.emu3 or draws(arguments):
        return [*prompts]
    batch = _batch_of(arguments)
    _check(batch, prompts, Canvas(), arguments.prompts_file)
    return [question_of(batch, place, prompt) for place, prompt in enumerate(prompts)]


def _batch_of(arguments: argparse.Namespace) -> PictureBatch:
    return PictureBatch(**arguments.emu3, images=arguments.images)


def _check(batch: PictureBatch, prompts: Sequence[Prompt], canvas: Canvas, prompts_file: str | None) -> None:
    file = Path(prompts_file) if prompts_file else None
    wrong = [what for _, what in batch_violations(batch, None if file else len(prompts))]
    if wrong := wrong or [*prompt_problems(batch, prompts, canvas, file)]:
        raise UserError(map(Problem, wrong))


@dataclass(frozen=True)
class Picture:
    """One picture to draw."""

    drawing: Drawing
    request: PictureRequest
    number: int
    """Among the pictures of its prompt, from 0."""
    seed: int | None
    """None: any."""
    sampling: Mapping[str, Any]
    """The fields of SamplingParams that are given, without `n` and `seed`."""

    @property
    def name(self) -> str:
        return f"{self.drawing.place:04d}_{self.number}.png"

    def source(self, model: str) -> dict[str, Any]:
        """Return all that the picture depends on but its seed, as JSON holds it."""
        return {
            "model": model,
            "prompt": [*self.request.prompt],
            "negative": [*self.request.negative],
            "grid": [self.request.grid.height, self.request.grid.width],
            "guidance_scale": self.request.scale,
            "sampling": dict(self.sampling),
        }


def draw(
    arguments: argparse.Namespace,
    prompts: Sequence[Prompt],
    share: Sequence[tuple[int, Prompt]],
    report: Report,
) -> None:
    """Draw the pictures of this host's share of the prompts, and write them with their results.

    Args:
        prompts: all of the batch.
        share: this host's, each with its place among all.

    Raises:
        UserError: with every prompt that cannot be used; or the model cannot, or a file cannot be written.
    """
    from vllm import EngineArgs

    wire(arguments)
    engine_args = EngineArgs.from_cli_args(arguments)
    try:
        model_config = engine_args.create_model_config()
    except ValueError as error:
        raise UserError(str(error)) from error
    if not is_emu3(model_config.hf_config.to_dict()):
        raise UserError(f"{arguments.model}: this is not an Emu3, which `mode: {IMAGE}` needs")
    batch, canvas = _batch_of(arguments), Canvas(_area(model_config), model_config.max_model_len)
    _check(batch, prompts, canvas, arguments.prompts_file)
    drawings = [drawing_of(batch, place, prompt, canvas) for place, prompt in share]
    wanted = [*_pictures(drawings, model_config, arguments.sampling)]
    try:
        files = PictureFiles(Path(arguments.pictures), Path(arguments.output))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    seeds = _make(wanted, files, arguments, engine_args, report)
    files.publish(_records(wanted, seeds, files))
    print(
        f"flagscale: wrote {len(wanted)} pictures to {arguments.pictures} and {arguments.output}", flush=True
    )


def _area(model_config: Any) -> int:
    from vllm.transformers_utils.processor import cached_image_processor_from_config

    return image_area(vars(cached_image_processor_from_config(model_config)))


def _pictures(
    drawings: Sequence[Drawing], model_config: Any, sampling: Mapping[str, Any]
) -> Iterator[Picture]:
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model_config)
    given = {name: value for name, value in sampling.items() if value is not None}
    count, seed = given.pop("n", 1), given.pop("seed", None)
    wrong = []
    for drawing in drawings:
        guidance = drawing.guidance or Guidance(1, NEGATIVE)
        try:
            request = picture_request(
                *(tokenizer, drawing.prompt, drawing.grid, model_config.max_model_len),
                scale=guidance.scale,
                negative=guidance.negative,
            )
        except ValueError as error:
            wrong.append(Problem(f"prompt {drawing.place}: {error}"))
            continue
        for number in range(count):
            # vLLM numbers the seeds of a request's answers in the same way (v1/engine/parallel_sampling.py).
            yield Picture(drawing, request, number, None if seed is None else seed + number, given)
    if wrong:
        raise UserError(wrong)


def _make(
    wanted: Sequence[Picture],
    files: PictureFiles,
    arguments: argparse.Namespace,
    engine_args: Any,
    report: Report,
) -> dict[str, int]:
    """Draw the pictures that are not there yet, and write each once it is finished; return all seeds."""
    model = str(arguments.model)
    seeds = {one.name: seed for one in wanted if (seed := seed_made(one, files, model)) is not None}
    waiting = deque(one for one in wanted if one.name not in seeds)
    if seeds:
        print(f"flagscale: {len(seeds)} pictures of a run that was ended are kept", flush=True)
    report(len(seeds), len(wanted), 0.0, _UNIT)
    if not waiting:
        return seeds
    from vllm import LLM
    from vllm.sampling_params import RequestOutputKind

    engine = LLM.from_engine_args(engine_args)
    print(f"flagscale: finished pictures appear in {files.partial}", flush=True)
    drawn: dict[str, tuple[Picture, int]] = {}
    begun, tokens = time.monotonic(), 0
    while waiting or drawn:
        while waiting and len(drawn) < arguments.batch_size:
            one = waiting.popleft()
            seed = secrets.randbelow(_SEEDS) if one.seed is None else one.seed
            params = one.request.sampling(seed=seed, **one.sampling)
            params.output_kind = RequestOutputKind.FINAL_ONLY
            (form,) = engine.renderer.render_cmpl([{"prompt_token_ids": [*one.request.prompt]}])
            # `LLM.enqueue` of vLLM 0.32 returns other ids than its outputs have.
            engine.llm_engine.add_request(one.name, form, params)
            drawn[one.name] = one, seed
        for output in engine.llm_engine.step():
            if not output.finished:
                continue
            one, seed = drawn.pop(output.request_id)
            ids, grid = output.outputs[0].token_ids, one.request.grid
            (png, *_) = filter(
                None, engine.collective_rpc("decode_picture", args=([*ids], [grid.height, grid.width]))
            )
            files.add(one.name, png, {**one.source(model), "seed": seed})
            seeds[one.name] = seed
            tokens += len(ids)
            report(len(seeds), len(wanted), tokens / (time.monotonic() - begun), _UNIT)
    return seeds


def seed_made(picture: Picture, files: PictureFiles, model: str) -> int | None:
    """Return the seed of the picture if a run that was ended made it of all the same; None if not."""
    made = dict(files.made_from(picture.name) or {})
    seed = made.pop("seed", None)
    is_same = made == picture.source(model) and picture.seed in (None, seed)
    return seed if is_same else None


def _records(
    wanted: Sequence[Picture], seeds: Mapping[str, int], files: PictureFiles
) -> list[dict[str, Any]]:
    """Return one record per prompt, in their order: its line of the prompts file, and what was drawn."""
    records: dict[int, dict[str, Any]] = {}
    for one in wanted:
        drawing = one.drawing
        record = records.setdefault(
            drawing.place,
            {
                "prompt": drawing.prompt,
                **drawing.line,
                "index": drawing.place,
                "size": drawing.grid.size,
                "guidance_scale": one.request.scale,
                "prompt_tokens": len(one.request.prompt),
                "pictures": [],
            },
        )
        record["pictures"].append({"file": files.file_of(one.name), "seed": seeds[one.name]})
    return [*records.values()]
