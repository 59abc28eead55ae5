#!/usr/bin/env bash
# multi-storage-client 1.3.1, hydra-core 1.3.8, Python 3.12; seen on 2026-11-30.
#
# Installing multi-storage-client, which megatron-energon 7.4.1 requires, makes every program that uses Hydra start more
# slowly, whether or not it reads a configuration from object storage. The package puts a module into the namespace
# `hydra_plugins`. Hydra imports all modules there before it composes anything, and this one imports the whole client.
#
# The module registers nothing if its imports fail. So a program that reads files alone can set
# `sys.modules["multistorageclient.contrib.hydra"] = None` before Hydra looks for plugins.
#
# Output seen (the modules that a Hydra program has imported, and the least CPU time of five starts):
#   without multi-storage-client: 316 modules, 0.21 s
#   with it: 613 modules, 0.53 s
#   with it, and None in its place: 333 modules, 0.26 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hydra-core==1.3.8
cat > "$folder/app.py" <<'PYTHON'
import sys

if "--without" in sys.argv:
    sys.argv.remove("--without")
    sys.modules["multistorageclient.contrib.hydra"] = None

import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    print(len(sys.modules))


main()
PYTHON
cat > "$folder/time.py" <<'PYTHON'
import os
import subprocess
import sys

label, *command = sys.argv[1:]
quiet = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
times = []
for _ in range(6):  # the first one compiles
    before = os.times()
    done = subprocess.run([*command, *quiet], capture_output=True, text=True, check=True)
    after = os.times()
    times.append(sum(after[2:4]) - sum(before[2:4]))
print(f"{label} {done.stdout.strip()} modules, {min(times[1:]):.2f} s")
PYTHON
run() { "$folder/venv/bin/python" "$folder/time.py" "$1" "$folder/venv/bin/python" "$folder/app.py" "${@:2}"; }
cd "$folder"
run "without multi-storage-client:"
"$folder/venv/bin/pip" install --quiet multi-storage-client==1.3.1
run "with it:"
run "with it, and None in its place:" --without
