"""Which arguments of vLLM make an engine draw and read pictures, if its model is Emu3."""

from __future__ import annotations

import argparse
from typing import Any

from flagscale.checks import emu3_folder
from vllm_flagscale.guidance import wiring as guidance
from vllm_flagscale.refusal import refused

GRID_PROCESSOR = "vllm_flagscale.emu3.processor:GridProcessor"
WORKER_EXTENSION = "vllm_flagscale.emu3.background.BackgroundDecoder"
IMAGES = "vllm_flagscale.emu3.images_api.AttachImages"
"""The middleware with the route for pictures; a server of another model answers there with status 404."""


def wire(arguments: argparse.Namespace) -> None:
    """Set the engine's own arguments for pictures, and guidance, if the model is Emu3; safe to repeat.

    The grid's processor comes before that of guidance, which draws among the tokens that the grid allows.

    Raises:
        SystemExit: with code 2, if another worker extension is named (vLLM takes one), or if the model would
            be divided.
    """
    if not is_emu3(arguments):
        return
    if wrong := [what for _, what in emu3_folder.division_violations(vars(arguments))]:
        raise SystemExit(refused("\n".join(wrong)))
    arguments.guidance = True
    guidance.wire(arguments)
    others = [one for one in arguments.logits_processors if one != GRID_PROCESSOR]
    others.insert(others.index(guidance.PROCESSOR), GRID_PROCESSOR)
    arguments.logits_processors = others
    if arguments.worker_extension_cls not in ("", WORKER_EXTENSION):
        what = f"--worker-extension-cls {arguments.worker_extension_cls} cannot be combined with Emu3"
        raise SystemExit(refused(f"{what}, whose pictures are decoded by one: remove it"))
    arguments.worker_extension_cls = WORKER_EXTENSION


def wire_server(arguments: argparse.Namespace) -> None:
    """Do the same for a server, with the template of its chats, unless the user gives one."""
    wire(arguments)
    if arguments.worker_extension_cls == WORKER_EXTENSION and arguments.chat_template is None:
        arguments.chat_template = template_of(arguments)


def template_of(arguments: argparse.Namespace) -> str:
    """Return the template of an Emu3's chats."""
    from transformers import AutoProcessor

    from vllm_flagscale.emu3.prompts import chat_template

    processor = AutoProcessor.from_pretrained(_model(arguments), revision=arguments.revision)
    return chat_template(processor.chat_template)


def is_emu3(arguments: argparse.Namespace) -> bool:
    """Return whether the model, a folder or a name on the Hub, is Emu3 by its `config.json`."""
    from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

    source = arguments.hf_config_path or _model(arguments)
    try:
        config: dict[str, Any] | None = get_hf_file_to_dict("config.json", source, arguments.revision)
    except ValueError:  # neither a folder nor a name on the Hub: a file, or the address of a store
        return False
    return emu3_folder.is_emu3(config or {})


def _model(arguments: argparse.Namespace) -> str:
    # The server takes the model as a positional argument too.
    return str(getattr(arguments, "model_tag", None) or arguments.model)
