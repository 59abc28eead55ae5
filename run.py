"""The command of the README: `python run.py --config-path FOLDER --config-name FILE action=run`."""

import sys

if __name__ == "__main__":
    try:
        from flagscale.cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # while importing; `main` handles later ones
        sys.exit(130)
