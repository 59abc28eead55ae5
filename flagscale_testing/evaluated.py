"""A tiny random model whose letters are tokens, two tasks for it, and its right scores, computed apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CHOICES = ("one", "two too", "three")
QUESTIONS = ("what is red?", "what is blue?", "who is it?", "a dog?", "tea or sun?", "where?")
NEW_TOKENS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz ?\n"
_TEMPLATE = "{{ bos_token }}{% for one in messages %}{{ one.content }}\n{% endfor %}"
LENGTH = 64


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a Llama of two layers whose tokenizer begins every text with BOS; return its folder."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {name: number for number, name in enumerate(("<s>", "</s>", "<pad>", *_LETTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = _TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,  # enough for scores that differ clearly
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_tasks(folder: Path) -> Path:
    """Write the tasks `local_choice` (multiple choice) and `local_answer` (generation); return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        {"q": question, "choices": CHOICES, "right": number % len(CHOICES), "answer": "x"}
        for number, question in enumerate(QUESTIONS)
    ]
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in documents))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{q}}",
    }
    choice = {
        "task": "local_choice",
        **shared,
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    answer = {
        "task": "local_answer",
        **shared,
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (choice, answer):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return folder


@dataclass(frozen=True)
class Reference:
    """A model of `write_model` in transformers."""

    model: Any
    tokenizer: Any

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Return that of each id after the first, given those before it."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[*ids]])).logits[0].log_softmax(-1)
        return [logits[place, token].item() for place, token in enumerate(ids[1:])]

    def choices(self, *, bos: bool) -> list[list[float]]:
        """Return, by question, the log-likelihood of each choice after the question and a space."""
        scores = []
        for question in QUESTIONS:
            before = len(self.ids(question, bos=bos))
            whole = [self.ids(f"{question} {choice}", bos=bos) for choice in CHOICES]
            scores.append([sum(self.log_probabilities(ids)[before - 1 :]) for ids in whole])
        return scores

    def ids(self, text: str, *, bos: bool) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=bos).input_ids
        return found

    def answers(self, *, is_chat: bool = False) -> list[str]:
        """Return the greedy answer to each question, as a text or in a conversation, until its line ends."""
        answers = []
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False) if is_chat else question
            ids = self.ids(text, bos=not is_chat)
            new: list[int] = []
            while len(new) < NEW_TOKENS:
                with torch.no_grad():
                    new.append(int(self.model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
                if new[-1] == self.tokenizer.eos_token_id:
                    break
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            answers.append(text.partition("\n")[0])
        return answers


def reference(folder: Path) -> Reference:
    """Return the model of a folder in transformers."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(folder))


def accuracies(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the share of right choices by log-likelihood, and by log-likelihood per character."""
    right = [number % len(CHOICES) for number in range(len(scores))]
    plain = [max(range(len(CHOICES)), key=one.__getitem__) for one in scores]
    normed = [
        max(range(len(CHOICES)), key=lambda place, one=one: one[place] / len(CHOICES[place]))  # type: ignore[misc]
        for one in scores
    ]
    shares = [sum(map(int.__eq__, found, right)) / len(right) for found in (plain, normed)]
    return shares[0], shares[1]
