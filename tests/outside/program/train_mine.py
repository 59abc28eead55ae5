"""Learn to copy or reverse rows of digits: a program with its own arguments, model, data and loss."""

import functools
import sys

from rows import row

from megatron.flagscale.program import run


def add_arguments(parser):
    group = parser.add_argument_group("rows of digits")
    group.add_argument("--row-digits", type=int, default=7, help="Digits in a row.")
    group.add_argument("--row-task", choices=("copy", "reverse"), default="copy")
    group.add_argument("--row-values", type=int, nargs="+", default=[1, 2, 3], help="Digits to draw from.")
    group.add_argument("--score-question", action="store_true", help="Include the question in the loss.")


def model_config(args):
    from megatron.training.argument_utils import gpt_config_from_args
    from scaled import ScaledConfig

    return gpt_config_from_args(args, model_config_cls=ScaledConfig)


def datasets(num_samples, vp_stage=None):
    import torch
    from megatron.training import get_args

    class Rows(torch.utils.data.Dataset):
        def __init__(self, first, length):
            self.first, self.length = first, length

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            args = get_args()
            whole = row(self.first + index, args.row_digits, args.row_values, args.row_task)
            tokens = torch.tensor(whole)
            mask = torch.ones(len(whole) - 1)
            if not args.score_question:
                mask[: args.row_digits] = 0
            return {
                "tokens": tokens[:-1],
                "labels": tokens[1:],
                "loss_mask": mask,
                "position_ids": torch.arange(len(whole) - 1),
            }

    train, validation, _ = num_samples
    return Rows(0, train), Rows(10**6, validation), None


def forward_step(data_iterator, model):
    from megatron.core.utils import get_attr_wrapped_model

    from megatron.flagscale.data import get_batch

    batch = get_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    losses = model(batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"])
    return losses, functools.partial(loss_func, batch["loss_mask"])


def loss_func(mask, losses):
    import torch

    total = torch.sum(losses.float() * mask)
    count = mask.sum()
    return total, count.int(), {"lm loss": torch.stack([total.detach(), count])}


if __name__ == "__main__":
    sys.exit(
        run(
            add_arguments=add_arguments,
            model_config=model_config,
            datasets=datasets,
            forward_step=forward_step,
        )
    )
