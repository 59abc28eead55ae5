"""A Hydra app that only composes the same files as our commands: what any launcher on Hydra needs at least.

python benchmarks/composing_app.py --config-path FOLDER --config-name FILE [key=value ...]
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> None:
    """Resolve every value, and do nothing else."""
    OmegaConf.to_container(config, resolve=True)


if __name__ == "__main__":
    main()
