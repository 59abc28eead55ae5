"""The ledger of patches and the catalog of arguments, against the installed engine."""

from __future__ import annotations

import argparse
import enum
import json
import subprocess
import sys

import pytest

from flagscale_testing.ranks.training import ROOT, environment
from megatron.flagscale.chips.cpu import CPU
from megatron.flagscale.chips.cuda import CUDA
from megatron.flagscale.ledger import ledger, needed
from megatron.flagscale.patching import Patch, PatchError


@pytest.mark.parametrize("patch", ledger(), ids=lambda patch: patch.target)
def test_every_target_exists_and_says_why(patch: Patch) -> None:
    patch.check()
    assert patch.why
    assert patch.group in ("cpu", "no-te", "wheel", "worker", "hetero")


def test_no_target_is_named_twice() -> None:
    targets = [patch.target for patch in ledger()]
    assert len(targets) == len(set(targets))


def test_with_cuda_and_transformer_engine_neither_group_applies() -> None:
    assert {patch.group for patch in needed(CUDA, te_or_apex=True)} == {"wheel", "worker"}
    assert {patch.group for patch in needed(CUDA, te_or_apex=False)} == {"wheel", "worker", "no-te"}
    assert not [patch for patch in needed(CUDA, te_or_apex=False) if patch.target.startswith("torch:")]


def test_a_chip_adds_its_own_patches() -> None:
    added = set(needed(CPU, te_or_apex=True)) - set(needed(CUDA, te_or_apex=True))
    assert added == set(CPU.patches)
    assert {patch.group for patch in added} == {"cpu"}


def test_a_missing_target_or_another_version_is_an_error() -> None:
    with pytest.raises(PatchError, match="no such target"):
        Patch("torch:cuda.no_such_thing", lambda original: original, "why", "cpu", "torch>=2").apply()
    with pytest.raises(PatchError, match="written for torch<1"):
        Patch("torch:tensor", lambda original: original, "why", "cpu", "torch<1").apply()


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, megatron.flagscale.train_gpt as t; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=environment(), check=False).returncode == 0


@pytest.fixture(scope="module")
def catalog() -> dict[str, dict[str, object]]:
    command = [sys.executable, "-m", "megatron.flagscale.catalog"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert (printed["engine"], printed["version"]) == ("megatron-core", "0.19.2")
    arguments: dict[str, dict[str, object]] = printed["arguments"]
    return arguments


def test_the_catalog_agrees_with_every_action_of_the_parser(catalog: dict[str, dict[str, object]]) -> None:
    from megatron.flagscale.args import engine_parser

    actions = [action for action in engine_parser()._actions if not isinstance(action, argparse._HelpAction)]
    options = {option.removeprefix("--"): action for action in actions for option in action.option_strings}
    negatives = {str(described["negative"]) for described in catalog.values() if "negative" in described}
    assert set(catalog) <= set(options)
    assert set(options) - set(catalog) <= negatives
    for name, described in catalog.items():
        action = options[name]
        assert described["dest"] == action.dest
        assert described["nargs"] == action.nargs
        assert described["required"] == action.required
        default = action.default.name if isinstance(action.default, enum.Enum) else action.default
        assert described["default"] == (list(default) if isinstance(default, tuple) else default)


def test_the_committed_catalog_is_that_of_the_installed_engine(
    catalog: dict[str, dict[str, object]],
) -> None:
    committed = json.loads((ROOT / "flagscale/engines/catalog/megatron.json").read_text())["arguments"]
    assert committed == catalog, "run make catalog"


def test_the_catalog_says_what_a_user_writes(catalog: dict[str, dict[str, object]]) -> None:
    assert catalog["attention-backend"]["choices"] == ["flash", "fused", "unfused", "local", "auto"]
    assert catalog["lr"] == catalog["lr"] | {"kind": "value", "type": "float", "default": None}
    assert catalog["persistent-save-interval"]["alias_of"] == "save-interval"
    assert catalog["rl-skip-bos-token"]["negative"] == "no-rl-skip-bos-token"
    assert (
        catalog["yarn-correction-range-round-to-int"]["negative"] == "no-yarn-correction-range-round-to-int"
    )
    assert catalog["no-masked-softmax-fusion"]["kind"] == "flag_false"
    assert catalog["metrics-file"]["help"]
