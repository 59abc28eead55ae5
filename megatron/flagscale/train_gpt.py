"""Train a GPT model with Megatron's own trainer: `torchrun ... -m megatron.flagscale.train_gpt ARGUMENTS`.

The shortest training program: Megatron's data, Megatron's arguments, the forward step of a GPT model.
"""

import sys

from megatron.flagscale.program import run

READS_DATA_PATH = True

if __name__ == "__main__":
    sys.exit(run())
