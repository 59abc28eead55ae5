"""The entry of the README: `python run.py --config-path FOLDER --config-name FILE action=run`."""

import sys

from flagscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
