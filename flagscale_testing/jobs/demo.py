"""Command-line overrides that make the shipped demo (`examples/aquila`) small enough for a test on CPU."""

from __future__ import annotations

from pathlib import Path

TINY = (
    "train.system.tensor_model_parallel_size=1",
    "train.model.num_layers=2",
    "train.model.hidden_size=32",
    "train.model.ffn_hidden_size=64",
    "train.model.seq_length=64",
    "train.model.max_position_embeddings=64",
    "train.model.optimizer.lr_warmup_iters=2",
)
"""The smallest useful model; batch sizes and the other parallel degrees are for the caller to choose."""

LONG = (
    f"experiment.task.entrypoint='{Path(__file__).with_name('paced.py')}'",
    "train.model.train_iters=100000",
)
"""A training that is still running when a test ends it, and leaves the cores to the test's own commands."""


def random_tokens(vocab_size: int) -> tuple[str, ...]:
    """Return the overrides that train on random tokens below `vocab_size`, without any files."""
    return (
        "~train.data.train_data_path",
        "~train.data.valid_data_path",
        "train.data.tokenizer.tokenizer_type=NullTokenizer",
        "train.data.tokenizer.tokenizer_model=null",
        f"+train.data.tokenizer.vocab_size={vocab_size}",
        "+train.data.mock_data=true",
    )
