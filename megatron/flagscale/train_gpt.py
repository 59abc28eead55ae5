"""Train a GPT model with Megatron's own trainer: `torchrun ... -m megatron.flagscale.train_gpt ARGUMENTS`.

This is the shortest training program: it uses Megatron's data and arguments and a GPT model's forward step.
"""

import sys

from megatron.flagscale.program import run

if __name__ == "__main__":
    sys.exit(run())
