"""`make demo-guidance`: ask one prompt at scales 1, 2 and 4, and measure how far guidance moves the answers.

The demo model knows Python's sources and documentation. The prompt begins like a source file, the negative
prompt like a page of documentation. Then a tiny Emu3 with random weights draws: its pictures are noise, but
keys and files are those of the real model.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools.demo_serve import RUN, made, served, step

if TYPE_CHECKING:
    import openai

PROMPT, NEGATIVE = "import os\nimport sys\n\nclass ", "The standard library of this language is "
SCALES = (1, 2, 4)
ANSWERS, TOKENS, SHOWN = 16, 40, 2
URL = "http://127.0.0.1:8000/v1"
EMU3 = Path("outputs/emu3_demo")
DRAW = ("run.py", "--config-path", "./examples/emu3/conf", "--config-name", "config_gen")


def main() -> int:
    """Run the steps; stop at the first that fails and return its exit code."""
    return made() or served((*RUN, "+serve.guidance=true"), compared) or drawn()


def compared() -> int:
    """Print answers per scale, and how much better they fit the prompt; return 1 if it does not rise."""
    import openai

    client = openai.OpenAI(base_url=URL, api_key="none")
    model = client.models.list().data[0].id
    prompt, negative = (_ids(client, model, text) for text in (PROMPT, NEGATIVE))
    print(f"\nprompt           {PROMPT!r}\nnegative prompt  {NEGATIVE!r}")
    gains = []
    for scale in SCALES:
        guidance = {"guidance_scale": scale, "negative_prompt": NEGATIVE}
        answers = client.completions.create(
            model=model,
            prompt=PROMPT,
            n=ANSWERS,
            seed=1,
            temperature=0.7,
            max_tokens=TOKENS,
            extra_body={**guidance, "ignore_eos": True, "return_token_ids": True},
        ).choices
        print(f"\nguidance_scale {scale}: {SHOWN} of {ANSWERS} answers")
        for answer in answers[:SHOWN]:
            print("\n".join(f"    | {line}" for line in f"{PROMPT}{answer.text}".splitlines()))
        tokens = [_extra(answer)["token_ids"] for answer in answers]
        likely = [_likelihood(client, model, context, tokens) for context in (prompt, negative)]
        gains.append(statistics.mean(likely[0]) - statistics.mean(likely[1]))
    print(
        "\nlog p(answer | prompt) - log p(answer | negative prompt), without guidance: the mean of "
        f"{ANSWERS} answers of {TOKENS} tokens\n\nscale   nats per token"
    )
    for scale, gain in zip(SCALES, gains, strict=True):
        print(f"{scale:>5}   {gain:.3f}  {'#' * max(round(100 * gain), 0)}")
    rises = all(less < more for less, more in pairwise(gains))
    print("\nit rises with the scale" if rises else "\nerror: it does not rise with the scale", flush=True)
    return 0 if rises else 1


def drawn() -> int:
    """Draw two pictures with a random Emu3; return the exit code."""
    folder = EMU3 / "tiny"
    made_now = 0 if folder.exists() else step("tools/emu3/tiny.py", "--output", str(folder))
    own = (
        f"experiment.exp_dir={EMU3}",
        f"inference.llm.model={folder}",
        "+inference.llm.dtype=float32",
        "+inference.llm.max_model_len=512",
        "+inference.llm.enforce_eager=true",
        "+experiment.envs.VLLM_CPU_KVCACHE_SPACE=1",
        "inference.generate.sampling.n=1",
    )
    return made_now or step(*DRAW, *own, "action=test")


def _ids(client: "openai.OpenAI", model: str, text: str) -> list[int]:
    answer = client.completions.create(
        model=model, prompt=text, max_tokens=1, extra_body={"return_token_ids": True}
    )
    return list(_extra(answer.choices[0])["prompt_token_ids"])


def _likelihood(
    client: "openai.OpenAI", model: str, context: Sequence[int], answers: Sequence[Sequence[int]]
) -> list[float]:
    """Return the mean log-probability of each answer's tokens after the context."""
    scored = client.completions.create(
        model=model,
        prompt=[[*context, *answer] for answer in answers],
        max_tokens=1,
        temperature=0,
        extra_body={"prompt_logprobs": 0},
    )
    found = []
    for choice, answer in zip(sorted(scored.choices, key=lambda one: one.index), answers, strict=True):
        after = _extra(choice)["prompt_logprobs"][len(context) :]
        found.append(
            statistics.mean(one[str(token)]["logprob"] for one, token in zip(after, answer, strict=True))
        )
    return found


def _extra(choice: Any) -> Mapping[str, Any]:
    """Return the fields of vLLM, which the client's types do not name."""
    return dict(choice.model_extra)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
