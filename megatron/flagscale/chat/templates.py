"""The Jinja template of a model's conversations: one of ours by name, a file, or the tokenizer's own.

It takes messages whose content is a text or a list of parts, as vLLM and transformers pass them, and writes
the token of a picture or video where its part stands, followed by a line break if no text precedes it. The
same text is rendered in training and exported with the model: a served model is asked as it was trained.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from flagscale.checks.picture_data import TEMPLATES
from flagscale.errors import Problem, UserError, first_line, nearest

_OF_PROCESSOR = "chat_template.json"
_PROBE = "probe"
_PARTS = ({"type": "image"}, {"type": "text", "text": _PROBE})


def template_of(tokenizer: Any, source: str | None, image_token: str, video_token: str) -> str:
    """Return the Jinja text for a transformers' tokenizer and the value of `chat_template`.

    A template that writes the image token for a part by itself keeps doing so. If the tokenizer puts a begin
    token before each text and the template does not, it is written here: transformers' processors would add
    it, but vLLM does not add it to conversations.

    Raises:
        UserError: `source` is neither a name of ours nor a file; the tokenizer has no template; the template
            cannot be rendered.
    """
    text = _text(tokenizer, source)
    takes_parts = _writes(text, tokenizer, _PARTS, image_token)
    takes_texts = _writes(text, tokenizer, _PROBE)
    if not takes_parts and takes_texts:
        text = _with_parts(text, image_token, video_token)
    elif takes_parts and not takes_texts:
        text = named_template("lists") + text
    if not _writes(text, tokenizer, _PARTS, image_token) or not _writes(text, tokenizer, _PROBE):
        what = (
            _refusal(text, tokenizer)
            or f"it does not write a message's text, or {image_token!r} for a picture"
        )
        raise UserError([Problem(f"the chat template cannot be used: {what}", source or "")])
    return _with_begin(text, tokenizer)


def text_template_of(tokenizer: Any, source: str | None, *, has_tools: bool = False, option: str = "") -> str:
    """Return the Jinja text for conversations without pictures, which `apply_chat_template` would render.

    Args:
        has_tools: for conversations with tools, for which a tokenizer may have a template of its own.
        option: the option of a command that `source` comes from, for messages.

    Raises:
        UserError: as `template_of`.
    """
    own = tokenizer.chat_template
    if source is None and has_tools and isinstance(own, dict) and "tool_use" in own:
        text = str(own["tool_use"])
    else:
        text = _text(tokenizer, source, option)
    if not takes(text, tokenizer, lists=False) and not takes(text, tokenizer, lists=True):
        what = _refusal(text, tokenizer) or "it does not write a message's text"
        raise UserError([Problem(f"the chat template cannot be used: {what}", source or "")])
    return text


def takes(template: str, tokenizer: Any, *, lists: bool) -> bool:
    """Return whether a template writes the text of a message whose content is a list of parts, or a text."""
    return _writes(template, tokenizer, [{"type": "text", "text": _PROBE}] if lists else _PROBE)


def own_template(tokenizer: Any) -> str:
    """Return the template in a tokenizer's folder; "" if it has none.

    The one in `chat_template.json` counts first: published models with pictures have it, and transformers'
    processors and vLLM prefer it, but transformers' tokenizers do not read it.
    """
    own, path = tokenizer.chat_template, Path(tokenizer.name_or_path) / _OF_PROCESSOR
    if isinstance(own, dict):
        own = own.get("default")
    if path.is_file():
        try:
            own = json.loads(path.read_text("utf-8"))["chat_template"]
        except (ValueError, KeyError, TypeError):
            what = 'is not JSON of the form {"chat_template": TEXT}'
            raise UserError([Problem(what, str(path))]) from None
    return str(own or "")


def named_template(name: str) -> str:
    """Return the text of a template of ours."""
    return files(__package__).joinpath(f"{name}.jinja").read_text("utf-8")


def rendered(template: str, tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    """Return messages as text, as transformers renders them; jinja2's errors are raised as they are."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chats, _ = render_jinja_template(
        [messages], chat_template=template, **{**tokenizer.special_tokens_map, **settings}
    )
    return str(chats[0])


def _text(tokenizer: Any, source: str | None, option: str = "") -> str:
    if source in TEMPLATES:
        text = named_template(source)
        if "eos_token" in text and tokenizer.eos_token is None:
            raise UserError(
                [Problem("it ends answers with the tokenizer's eos_token, which is not set", source)]
            )
        return text
    if source is not None:
        path = Path(source)
        if not path.is_file():
            given = f"{option} {source}:" if option else f"`chat_template: {source}`"
            what = f"{given} is neither a file nor one of {', '.join(TEMPLATES)}"
            raise UserError([Problem(what, hint=nearest(source, TEMPLATES))])
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise UserError([Problem(f"is not a text in UTF-8: {error}", source)]) from None
    own = own_template(tokenizer)
    if not own:
        hint = f"set {option or '`chat_template`'} to one of {', '.join(TEMPLATES)}, or to a Jinja file"
        raise UserError([Problem("the tokenizer has no chat template", str(tokenizer.name_or_path), hint)])
    return own


def _writes(template: str, tokenizer: Any, content: Any, image_token: str = "") -> bool:
    """Whether a template writes the text of a user's message, and one image token for the picture in it."""
    try:
        text = rendered(template, tokenizer, _asked(content))
        without = rendered(template, tokenizer, _asked("")) if image_token else ""
    except Exception:  # jinja2's errors, or any that an expression in the template raises
        return False
    has_token = not image_token or text.count(image_token) == 1 + without.count(image_token)
    return has_token and _PROBE in text and "'type'" not in text


def _refusal(template: str, tokenizer: Any) -> str:
    """Return why a template cannot be rendered; "" if it can."""
    try:
        rendered(template, tokenizer, _asked(_PROBE))
    except Exception as error:  # as above
        return first_line(error)
    return ""


def _asked(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _with_parts(template: str, image_token: str, video_token: str) -> str:
    """Return a template that joins the parts of each message to a text before `template` renders them."""
    tokens = {"image": image_token, "image_url": image_token, "video": video_token, "video_url": video_token}
    joining = named_template("parts")
    return f"{{%- set placeholders = {tokens!r} -%}}\n{joining}{template}"


def _with_begin(template: str, tokenizer: Any) -> str:
    """Return a template that writes the begin token, if the tokenizer adds it and the template does not."""
    begin = tokenizer.bos_token
    if begin is None or tokenizer(_PROBE).input_ids[:1] != [tokenizer.bos_token_id]:
        return template
    if rendered(template, tokenizer, _asked(_PROBE)).startswith(begin):
        return template
    return "{{- bos_token -}}\n" + template
