"""Send a prompt to a server that FlagScale started: `ask.py "import os"`. Uses the `openai` client.

With pictures, it is a question about them: `ask.py "How many circles are there?" --image drawing.png`. With
`--draw`, Emu3 draws a picture: `ask.py "a shiba inu" --draw shiba.png --size 16:9`. If the server requires an
API key, it is read from the environment variable VLLM_API_KEY.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import sys
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagscale.checks.guidance import KEYS, guidance_violations, value_violations
from flagscale.checks.message_files import file_violations, with_files
from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from flagscale.formats import option_of
from tools.command import run

if TYPE_CHECKING:
    import openai

_DEFAULT_URL = "http://127.0.0.1:8000/v1"
_MAX_TOKENS = 64


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt")
    parser.add_argument(
        "--url", type=_url, default=_DEFAULT_URL, help="URL of the server (default: %(default)s)"
    )
    parser.add_argument("--model", help="name of the model on the server (default: its first model)")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's chat message")
    for kind, what in (("image", "a picture"), ("video", "a video")):
        parser.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar="FILE|URL",
            help=f"{what} to put before the prompt, in a chat message; give it several times for several",
        )
    parser.add_argument("--max-tokens", type=int, help=f"most tokens to generate (default: {_MAX_TOKENS})")
    parser.add_argument("--temperature", type=_finite, help="sampling temperature (default: 0; 1 for --draw)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answer or picture again")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="draw the prompt into this PNG file; the model must be Emu3"
    )
    parser.add_argument("--size", help="of the picture to draw: 960x544, or a ratio like 16:9 (default: 1:1)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="how strongly the answer moves away from --negative-prompt; the server needs `guidance: true`",
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="the text to move away from")
    return parser


def main() -> int:
    """Print the answer as it arrives."""
    import httpx
    import openai

    arguments = _parser().parse_args()
    guidance = {key: value for key in KEYS if (value := getattr(arguments, key)) is not None}
    if wrong := [*_violations(arguments, guidance)]:
        raise UserError([Problem(what) for what in wrong])
    chat = _chat(arguments)
    begun = False
    client = openai.OpenAI(base_url=arguments.url, api_key=os.environ.get("VLLM_API_KEY") or "none")
    try:
        model = arguments.model or client.models.list().data[0].id
        settings: dict[str, Any] = {
            "max_tokens": _MAX_TOKENS if arguments.max_tokens is None else arguments.max_tokens,
            "temperature": arguments.temperature or 0.0,
            "seed": arguments.seed,
            "stream": True,
            "extra_body": guidance,
        }
        if arguments.draw:
            _draw(client, model, arguments, guidance)
            return 0
        if chat:
            for chunk in client.chat.completions.create(model=model, messages=chat, **settings):
                begun = True
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        else:
            answer = client.completions.create(model=model, prompt=arguments.prompt, **settings)
            print(arguments.prompt, end="")
            for chunk in answer:
                begun = True
                print(chunk.choices[0].text, end="", flush=True)
    except openai.APIStatusError as error:
        problem = Problem(
            f"the server refused the request: {error.message}", hint=_hint(error, arguments.url)
        )
        raise UserError([problem]) from None
    except (openai.APIConnectionError, httpx.TransportError):
        if begun:
            print()
            raise UserError("the answer is not complete: the server ended the connection") from None
        what = f"no server answers at {arguments.url} (action=query prints the server's address)"
        raise UserError(what) from None
    except openai.APIError as error:
        print()
        raise UserError(f"the server ended the answer: {error.message}") from None
    print()
    return 0


def _violations(arguments: argparse.Namespace, guidance: Mapping[str, Any]) -> Iterator[str]:
    if not arguments.draw:
        yield from (_as_options(what) for _, what in guidance_violations(guidance))
        if arguments.size is not None:
            yield "--size needs --draw FILE"
        return
    # Pictures have values of their own for the keys of guidance, so one of them may be given alone.
    yield from (_as_options(what) for _, what in value_violations(guidance))
    for name in ("chat", "image", "video", "max_tokens"):
        if getattr(arguments, name):
            yield f"{option_of(name)} cannot be combined with --draw"
    if not arguments.draw.absolute().parent.is_dir():
        yield f"--draw {arguments.draw}: the folder {arguments.draw.parent} does not exist"


def _draw(
    client: openai.OpenAI, model: str, arguments: argparse.Namespace, guidance: Mapping[str, Any]
) -> None:
    """Write the picture of the prompt, and print what it takes to draw it again."""
    given = {"size": arguments.size, "seed": arguments.seed, "temperature": arguments.temperature}
    fields = {**guidance, **{name: value for name, value in given.items() if value is not None}}
    answer = client.images.generate(prompt=arguments.prompt, model=model, extra_body=fields)
    picture = (answer.data or [])[0]
    try:
        write_atomic(arguments.draw, base64.b64decode(picture.b64_json or ""))
    except OSError as error:
        raise UserError(f"{arguments.draw}: the picture cannot be written: {error.strerror}") from None
    print(f"{arguments.draw}: {answer.size}, seed {getattr(picture, 'seed', 'unknown')}")


def _as_options(what: str) -> str:
    """Return a message about fields of a request as one about this program's options."""
    for key in KEYS:
        what = what.replace(f"`{key}`", option_of(key))
    return what


def _chat(arguments: argparse.Namespace) -> list[Any]:
    """Return the chat to send, with the pictures and videos before the prompt; empty for a plain prompt.

    Raises:
        UserError: with every file that does not exist.
    """
    media = [
        {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
        for kind in ("image", "video")
        for url in getattr(arguments, kind)
    ]
    if not media:
        return [{"role": "user", "content": arguments.prompt}] if arguments.chat else []
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": arguments.prompt}]}]
    if wrong := [*file_violations(messages, Path())]:
        raise UserError([Problem(what) for what in wrong])
    return with_files(messages, Path())


def _hint(error: openai.APIStatusError, url: str) -> str:
    """Return how to fix what the server refused; "" if its message says that."""
    if error.status_code == HTTPStatus.UNAUTHORIZED:
        return "it requires the key in the environment variable VLLM_API_KEY"
    base = url.rstrip("/")
    if error.status_code == HTTPStatus.NOT_FOUND and not base.endswith("/v1"):
        root = "{0.scheme}://{0.netloc}".format(urlsplit(base))
        return f"the address of the API ends in /v1: --url {root}/v1"
    return ""


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # JSON has none
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a URL; write it like {_DEFAULT_URL}")
    return text


if __name__ == "__main__":
    sys.exit(run(main))
