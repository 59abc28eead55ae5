#!/usr/bin/env bash
# transformers 5.19.0, tokenizers 0.23.3, Python 3.12; seen on 2026-11-30.
#
# `ProcessorMixin.apply_chat_template` looks whether the text that a chat template makes begins with BOS, and if so, asks
# the processor for no other one (`add_special_tokens=False`). `Emu3Processor` puts BOS in front all the same, so the
# prompt has two: its `__call__` sorts the arguments by their kind before it passes them on, and
# `prepare_inputs_layout`, where BOS is added, looks for `add_special_tokens` beside these kinds, where it never is.
# Called directly, the processor ignores `add_special_tokens=False` as well. Its tokenizer alone heeds it and adds none.
# vLLM 0.32 takes the text of a prompt with a picture from the template and adds no BOS: a template with BOS is right
# there and wrong here, and one without it the other way round.
#
# Output seen (marks at the beginning of the prompt):
#   tokenizer: 1 with BOS in the template, 0 without
#   processor, template tokenized: 2 with BOS in the template, 1 without
#   processor, called with add_special_tokens=False: 2 with BOS in the text, 1 without
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.3 \
    jinja2==3.1.6 pillow==13.0.0 numpy==2.3.5
cat > "$folder/show.py" <<'PYTHON'
from itertools import takewhile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Emu3Processor, PreTrainedTokenizerFast
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
bpe = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
names = {"boi_token": "<begin>", "eoi_token": "<end>", "image_token": "<image>", "image_wrapper_token": "<size>"}
names["eof_token"] = "<frame>"
bpe.add_special_tokens(["<bos>", *names.values()])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", extra_special_tokens=names)
without = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
templates = ("{{ bos_token }}" + without, without)
messages = [{"role": "user", "content": "a question"}]


def marks(ids):
    ids = ids[0] if ids and isinstance(ids[0], list) else ids
    return len([*takewhile(lambda one: one == tokenizer.bos_token_id, ids)])


def shown(what, count):
    first, second = (count(template) for template in templates)
    print(f"{what}: {first} with BOS in the {'text' if 'called' in what else 'template'}, {second} without")


def alone(template):
    return marks(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True)["input_ids"])


def tokenized(template):
    processor = Emu3Processor(Emu3ImageProcessor(), tokenizer, chat_template=template)
    made = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    return marks(made["input_ids"])


def called(template):
    processor = Emu3Processor(Emu3ImageProcessor(), tokenizer, chat_template=template)
    text = processor.apply_chat_template(messages, tokenize=False)
    return marks(processor(text=text, add_special_tokens=False)["input_ids"])


shown("tokenizer", alone)
shown("processor, template tokenized", tokenized)
shown("processor, called with add_special_tokens=False", called)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
