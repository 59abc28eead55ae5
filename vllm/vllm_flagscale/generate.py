"""Batch inference: `python -m vllm_flagscale.generate ENGINE-ARGUMENTS --prompts-file FILE --output FILE`.

Processes this host's share of the prompts and writes one JSON object per prompt, and the same results as
readable text. Both files appear once they are complete.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flagscale.checks.message_files import media_of, with_files
from flagscale.checks.prompts import Prompt, inline_prompts, read_prompts
from flagscale.errors import Problem, UserError
from flagscale.files import put_in_place, write_atomic
from flagscale.run.env import PROGRESS_FILE
from vllm_flagscale.emu3 import batch as emu3_batch
from vllm_flagscale.emu3 import wiring as emu3
from vllm_flagscale.guidance import wiring as guidance
from vllm_flagscale.guidance.negative import guided_params, negatives, sampling_violations
from vllm_flagscale.records import readable, record_of
from vllm_flagscale.refusal import refused
from vllm_flagscale.sampling import Sampling, sampling_of
from vllm_flagscale.seeds import survive_seeds

_NO_TEMPLATE = (
    "the model's tokenizer has no chat template, which `chat: true` and `messages` need: "
    "add chat_template.jinja to its folder"
)


def main() -> int:
    """Generate, and return the exit code: 0 if all is done, 2 for a user's mistake."""
    from vllm import LLM, EngineArgs
    from vllm.exceptions import VLLMClientError
    from vllm.renderers.chat_utils import ChatTemplateResolutionError
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm_flagscale.generate"))
    guidance.add_argument(parser)
    _add_arguments(parser)
    emu3_batch.add_arguments(parser)
    arguments = parser.parse_args()
    output = Path(arguments.output)
    survive_seeds(arguments)
    if emu3_batch.draws(arguments):
        try:
            given = _prompts(arguments)
            emu3_batch.draw(arguments, given, _share(given, *arguments.share), _print_progress)
        except UserError as error:
            return _refused(error)
        return 0
    try:
        given = _prompts(arguments)
        is_guided = any(prompt.guidance for prompt in given)
        arguments.guidance |= is_guided
        guidance.wire(arguments)
        emu3.wire(arguments)
        engine_args = EngineArgs.from_cli_args(arguments)
        model_config = engine_args.create_model_config()
        structured = engine_args.create_structured_outputs_config()
        prompts = _share(given, *arguments.share)
        has_plain = not all(prompt.chat(arguments.chat) for _, prompt in prompts)
        sampling = sampling_of(arguments.sampling, model_config, structured, has_plain=has_plain)
        # With Emu3, every engine guides, but not every batch does.
        if is_guided and (wrong := sampling_violations(sampling.plain, sampling.chat)):
            raise ValueError("\n".join(wrong))
        # Do this first: the engine takes minutes to start.
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f"{output.name}.partial")
        file = partial.open("w", encoding="utf-8")
    except (UserError, ValueError, TypeError, OSError) as error:
        return _refused(error)
    if sampling.from_folder:
        taken = ", ".join(f"{name} {value}" for name, value in sampling.from_folder.items())
        print(f"flagscale: sampling values of the model's generation configuration: {taken}", flush=True)
    with file:
        _print_progress(0, len(prompts), 0.0)
        engine = LLM.from_engine_args(engine_args)
        if emu3.is_emu3(arguments):
            engine.chat_template = emu3.template_of(arguments)
        try:
            negative, wrong = negatives(engine, prompts, chat=arguments.chat)
            if wrong := [*_prompt_violations(engine, prompts), *wrong]:
                return _refused(UserError(map(Problem, wrong)))
            for record in _generated(engine, prompts, negative, sampling, arguments):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except ChatTemplateResolutionError:
            return _refused(ValueError(_NO_TEMPLATE))
        except UserError as error:
            return _refused(error)
        except VLLMClientError as error:  # a chat that is too long, for example
            return _refused(error)
    text = output.with_suffix(".txt")
    write_atomic(text, readable(partial))
    put_in_place(partial, output)
    print(f"flagscale: wrote {len(prompts)} results to {output} (readable text: {text})", flush=True)
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompts", type=json.loads, help="a JSON list of texts")
    given.add_argument("--prompts-file", help="a file of prompts, in a format of flagscale.checks.prompts")
    parser.add_argument("--sampling", type=json.loads, default={}, help="fields of SamplingParams as JSON")
    parser.add_argument("--batch-size", type=int, default=256, help="number of prompts per batch")
    parser.add_argument("--chat", action="store_true", help="apply the chat template to plain prompts")
    parser.add_argument(
        "--guidance-keys", type=json.loads, default={}, help="guidance of all prompts, as a JSON object"
    )
    parser.add_argument("--output", required=True, help="the file for the results")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help="this host's rank, hosts in all")


def _refused(error: Exception) -> int:
    return refused("\n".join(error.messages) if isinstance(error, UserError) else str(error))


def _prompts(arguments: argparse.Namespace) -> list[Prompt]:
    if arguments.prompts_file:
        prompts, wrong = read_prompts(Path(arguments.prompts_file), arguments.guidance_keys)
    else:
        read = [*inline_prompts(arguments.prompts, arguments.guidance_keys)]
        prompts = [one for one in read if isinstance(one, Prompt)]
        wrong = [one for one in read if isinstance(one, str)]
    if wrong:
        raise UserError(map(Problem, wrong))
    return emu3_batch.as_questions(arguments, prompts)


def _share(prompts: Sequence[Prompt], rank: int, hosts: int) -> list[tuple[int, Prompt]]:
    """Return the prompts of one of several hosts, each with its place in the whole list."""
    first, last = len(prompts) * rank // hosts, len(prompts) * (rank + 1) // hosts
    return list(enumerate(prompts))[first:last]


def _prompt_violations(engine: Any, prompts: list[tuple[int, Prompt]]) -> list[str]:
    """Return which prompts are too long, have unknown ids, or more pictures than the model takes.

    The engine would stop at the first one, and does not say which of a batch's chats it is.
    """
    model = engine.llm_engine.model_config
    longest, tokens = model.max_model_len, model.get_vocab_size()
    tokenizer = None if model.skip_tokenizer_init else engine.get_tokenizer()
    # An id that only the tokenizer has is accepted: it may stand for an image.
    known = max(tokens, tokenizer.max_token_id + 1) if tokenizer else tokens
    pictures = engine.renderer.mm_processor
    limits = pictures.info.allowed_mm_limits if pictures else {}
    wrong = []
    for place, prompt in prompts:
        for kind, count in Counter(kind for kind, _ in media_of(prompt.messages)).items():
            if count > (limit := limits.get(kind, 0)):
                most = f"the limit is {limit} (`limit_mm_per_prompt`)" if limit else "the model takes none"
                wrong.append(f"prompt {place} has {count} of type {kind}; {most}")
        if (largest := max(prompt.token_ids, default=0)) >= known:
            wrong.append(f"prompt {place}: {largest} is not an id of the model's {tokens} tokens")
        length = len(tokenizer.encode(prompt.text)) if prompt.text and tokenizer else len(prompt.token_ids)
        if length >= longest:
            what = f"prompt {place} has {length} tokens; the limit is {longest}, including the answer"
            wrong.append(f"{what}; shorten the prompt or raise max_model_len")
    return wrong


def _generated(
    engine: Any,
    prompts: list[tuple[int, Prompt]],
    negative: Mapping[int, list[int]],
    sampling: Sampling,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield one record per prompt, batch by batch; `negative` holds the ids of guided ones, by place."""

    def each(prompts: list[tuple[int, Prompt]], params: Any) -> list[Any]:
        return [
            guided_params(params, prompt.guidance.scale, negative[place]) if prompt.guidance else params
            for place, prompt in prompts
        ]

    size, begun, tokens = arguments.batch_size, time.monotonic(), 0
    folder = Path(arguments.prompts_file or "").parent
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        texts: list[tuple[int, Prompt]] = []
        chats: list[tuple[int, Prompt]] = []
        for one in batch:
            (chats if one[1].chat(arguments.chat) else texts).append(one)
        answers: dict[int, Any] = {}
        if texts:
            forms = [_engine_form(one) for _, one in texts]
            answers |= _by_place(texts, engine.generate(forms, each(texts, sampling.plain)))
        if chats:
            messages = [with_files(one.chat(arguments.chat), folder) for _, one in chats]
            try:
                answers |= _by_place(chats, engine.chat(messages, each(chats, sampling.chat)))
            except ValueError:
                _check_media([place for place, _ in chats], messages)
                raise
        for place, prompt in batch:
            record = record_of(place, prompt, answers[place])
            tokens += sum(len(one["token_ids"]) for one in record["outputs"])
            yield record
        _print_progress(start + len(batch), len(prompts), tokens / (time.monotonic() - begun))


def _by_place(prompts: list[tuple[int, Prompt]], answers: list[Any]) -> dict[int, Any]:
    return {place: answer for (place, _), answer in zip(prompts, answers, strict=True)}


def _check_media(places: list[int], chats: list[list[dict[str, Any]]]) -> None:
    """Raise a UserError that names all pictures and videos of chats that vLLM cannot read, if there are any.

    The engine stops at the first one, and does not say which it is.
    """
    from vllm.multimodal.media import MediaConnector

    reader, wrong = MediaConnector(), []
    for place, messages in zip(places, chats, strict=True):
        for number, (kind, url) in enumerate(media_of(messages)):
            try:
                (reader.fetch_image if kind == "image" else reader.fetch_video)(url)
            except ValueError as error:
                wrong.append(Problem(f"prompt {place}, {kind} {number + 1}: {error}"))
    if wrong:
        raise UserError(wrong)


def _engine_form(prompt: Prompt) -> dict[str, Any]:
    return {"prompt_token_ids": list(prompt.token_ids)} if prompt.token_ids else {"prompt": prompt.text}


def _print_progress(done: int, total: int, tokens_per_s: float, unit: str = "prompts") -> None:
    """Report progress to the process that started this one (see `flagscale.node.service`)."""
    if path := os.environ.get(PROGRESS_FILE):
        reported = {"done": done, "total": total, "unit": unit, "tokens_per_s": tokens_per_s}
        write_atomic(Path(path), json.dumps(reported))


if __name__ == "__main__":  # vLLM starts processes that import this module again
    sys.exit(main())
