"""Send a prompt to a server that FlagScale started: `ask.py "import os"`. Uses the `openai` client.

If the server requires an API key, it is read from the environment variable VLLM_API_KEY.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagscale.errors import UserError
from tools.command import run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt")
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000/v1", help="URL of the server (default: %(default)s)"
    )
    parser.add_argument("--model", help="name of the model on the server (default: its first model)")
    parser.add_argument("--chat", action="store_true", help="send the prompt as a user's chat message")
    parser.add_argument(
        "--max-tokens", type=int, default=64, help="most tokens to generate (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="sampling temperature (default: %(default)s)"
    )
    return parser


def main() -> int:
    """Print the answer as it arrives."""
    import openai

    arguments = _parser().parse_args()
    client = openai.OpenAI(base_url=arguments.url, api_key=os.environ.get("VLLM_API_KEY") or "none")
    try:
        model = arguments.model or client.models.list().data[0].id
        settings = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "stream": True}
        if arguments.chat:
            messages = [{"role": "user", "content": arguments.prompt}]
            for chunk in client.chat.completions.create(model=model, messages=messages, **settings):
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        else:
            print(arguments.prompt, end="")
            for chunk in client.completions.create(model=model, prompt=arguments.prompt, **settings):
                print(chunk.choices[0].text, end="", flush=True)
    except openai.APIConnectionError:
        raise UserError(
            f"no server answers at {arguments.url} (action=query prints the server's address)"
        ) from None
    except openai.APIStatusError as error:
        raise UserError(f"the server refused the request: {error.message}") from None
    print()
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
