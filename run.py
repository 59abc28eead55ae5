"""The entry of the README: `python run.py --config-path ./examples/aquila/conf --config-name config action=run`."""

import sys

from flagscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
