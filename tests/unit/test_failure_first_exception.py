"""Finding the root cause in the output of an engine that fails."""

from __future__ import annotations

from flagscale.run.failure import first_exception

FAILED = """\
(APIServer pid=7) INFO 11-28 00:45:28 [model.py:733] Resolved architecture: LlamaForCausalLM
(EngineCore pid=9) ERROR 11-28 00:47:40 [core.py:1510] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-28 00:47:40 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-28 00:47:40 [core.py:1510]   File "core.py", line 1, in run
(EngineCore pid=9) ERROR 11-28 00:47:40 [core.py:1510]     load()
(EngineCore pid=9) ERROR 11-28 00:47:40 [core.py:1510] ValueError: 13 heads cannot be cut into 2
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "server.py", line 2, in main
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_first_of_several_exceptions_is_returned() -> None:
    assert first_exception(FAILED) == (
        "ValueError: 13 heads cannot be cut into 2",
        'Traceback (most recent call last):\n  File "core.py", line 1, in run\n    load()\n'
        "ValueError: 13 heads cannot be cut into 2",
    )


def test_a_traceback_without_prefixes() -> None:
    text = "hello\nTraceback (most recent call last):\n  File x\n    y\nOSError: no\nbye\n"
    assert first_exception(text) == (
        "OSError: no",
        "Traceback (most recent call last):\n  File x\n    y\nOSError: no",
    )


VALIDATION = """\
Traceback (most recent call last):
  File "server.py", line 2, in main
    config = ModelConfig()
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, awq is not supported [type=value_error, input_value=..]
    For further information visit
bye
"""


def test_the_message_of_a_validation_error_is_on_the_next_line() -> None:
    found = first_exception(VALIDATION)
    assert found is not None
    said, traceback = found
    assert said == (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
        "Value error, awq is not supported"
    )
    assert traceback.endswith("    For further information visit")
    assert "bye" not in traceback


def test_output_of_concurrent_processes_is_separated() -> None:
    first, second = "(Worker_TP0 pid=3) ERROR 11-28 00:47:40 [a.py:1] ", "(Worker_TP1 pid=4) "
    lines = [
        f"{first}Traceback (most recent call last):",
        f"{second}Traceback (most recent call last):",
        f'{first}  File "w.py", line 1, in load',
        f'{second}  File "w.py", line 9, in load',
        f"{second}OSError: the second one's",
        f"{first}ValueError: the first one's",
    ]
    found = first_exception("\n".join(lines))
    assert found is not None
    assert found[0] == "ValueError: the first one's"
    assert "line 9" not in found[1]


def test_without_a_complete_exception_the_result_is_none() -> None:
    assert first_exception("usage: x\nx: error: the following arguments are required\n") is None
    assert first_exception("Traceback (most recent call last):\n  File cut") is None
