"""Names of engines, platforms and transports: ours and those of installed packages, imported on use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from flagscale import cli, platforms, registry
from flagscale.errors import UserError
from flagscale_testing.packages import write_package

Install = Callable[..., None]

CHIPS = """
from flagscale.platforms import Platform
NPU = Platform('npu', lambda environ: 8, chips=('X910',))
FALSE_CPU = Platform('false', lambda environ: 99)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package with one module; see `write_package`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._note.cache_clear()
    registry._note_ignored.cache_clear()

    def install(name: str, entry_points: Mapping[str, Mapping[str, str]], source: str = "") -> None:
        write_package(tmp_path, name, entry_points, source)
        sys.modules.pop(name, None)
        names.append(name)

    names: list[str] = []
    yield install
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def installed(install: Install) -> str:
    """Install a package that adds a platform and tries to replace one of ours; return its module's name."""
    points = {"npu": "thirdparty_chips:NPU", "cpu": "thirdparty_chips:FALSE_CPU"}
    install("thirdparty_chips", {"platforms": points}, CHIPS)
    return "thirdparty_chips"


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, table in registry.BUILT_IN.items() for n in table])
def test_every_built_in_name_can_be_loaded(kind: str, name: str) -> None:
    assert registry.load(kind, name) is not None


@pytest.mark.parametrize("name", platforms.BUILT_IN)
def test_every_platform_has_the_name_under_which_it_is_found(name: str) -> None:
    assert platforms.find(name).name == name


def test_an_unknown_name_is_a_mistake_with_the_nearest_one() -> None:
    with pytest.raises(UserError) as raised:
        registry.load("engines", "megatorn", "experiment.task.backend")
    (problem,) = raised.value.problems
    assert problem.what == "unknown engine `megatorn`"
    assert problem.where == "experiment.task.backend"
    assert problem.hint == "did you mean `megatron`?"


def test_an_installed_package_adds_a_name_and_is_not_imported_by_a_lookup(installed: str) -> None:
    assert "npu" in registry.names("platforms", platforms.BUILT_IN)
    assert installed not in sys.modules
    assert platforms.find("npu").count_devices({}) == 8
    assert platforms.find("x910").name == "npu"


def test_a_built_in_name_cannot_be_replaced(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert platforms.find("cpu").name == platforms.find("cpu").name == "cpu"
    reported = "note: the platform `cpu` is FlagScale's own; the one of thirdparty_chips 1.0 is ignored\n"
    assert capsys.readouterr().err == reported


def test_auto_finds_an_installed_chip(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert platforms.find("auto").name == "npu"


@pytest.mark.parametrize(
    ("kind", "target", "source", "cause"),
    [
        ("runners", "broken.absent:IT", "", "cannot be loaded: No module named 'broken.absent'"),
        ("runners", "broken:IT", "", "cannot be loaded: module 'broken' has no attribute 'IT'"),
        ("runners", "broken", "", "cannot be loaded: the entry point needs the form `module:attribute`"),
        ("runners", "broken:IT", "import absent_vendor", "cannot be loaded: No module named 'absent_vendor'"),
        ("runners", "broken:IT", "IT = (", "cannot be loaded: '(' was never closed"),
        ("runners", "broken:IT", "IT = 5", "is of the type `int`, not `JobRunner`"),
        ("engines", "broken:IT", "IT = 5", "is of the type `int`, not `Engine`"),
        ("actions", "broken:IT", "IT = 5", "is of the type `int`, not `Callable`"),
        ("transports", "broken:IT", "IT = 5", "is of the type `int`, not `Callable`"),
        ("runners", "broken:IT", "from flagscale.runners.ssh import SSH as IT", "calls itself `ssh`"),
    ],
)
def test_a_broken_package_is_named(install: Install, kind: str, target: str, source: str, cause: str) -> None:
    install("broken", {kind: {"mine": target}}, source)
    with pytest.raises(UserError) as raised:
        registry.load(kind, "mine", "config.yaml:3")
    (problem,) = raised.value.problems
    start = f"the {kind[:-1]} `mine` ({target}, registered by broken 1.0) "
    assert problem.what.startswith(start + cause)
    assert (problem.where, problem.hint) == ("config.yaml:3", "fix or uninstall the package")


def test_a_bug_in_a_package_keeps_its_traceback(install: Install) -> None:
    install("broken", {"engines": {"mine": "broken:IT"}}, "1 / 0")
    with pytest.raises(ZeroDivisionError):
        registry.load("engines", "mine")


def test_a_platform_must_have_the_name_under_which_it_is_registered(install: Install) -> None:
    install("thirdparty_chips", {"platforms": {"Npu": "thirdparty_chips:NPU"}}, CHIPS)
    with pytest.raises(UserError, match=r"`Npu` \(.*registered by thirdparty_chips 1.0\) calls itself `npu`"):
        platforms.find("Npu")


@pytest.mark.parametrize("source", ["import absent_vendor", "1 / 0"])
def test_a_search_skips_a_broken_package_with_one_note(
    install: Install, installed: str, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    install("aa_broken", {"platforms": {"aa": "aa_broken:IT"}}, source)
    assert platforms.find("auto").name == platforms.find("x910").name == "npu"
    for _ in range(2):
        with pytest.raises(UserError, match="unknown platform `X1`"):  # this search tries every package
            platforms.find("X1")
    (reported,) = capsys.readouterr().err.splitlines()
    assert reported.startswith("note: skipped: the platform `aa` (")
    assert "registered by aa_broken 1.0" in reported
    assert reported.endswith(("No module named 'absent_vendor'", "ZeroDivisionError: division by zero"))


def test_a_name_of_two_packages_is_refused(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        install(name, {"platforms": {"npu": f"{name}:NPU"}}, CHIPS)
    with pytest.raises(UserError, match=r"`npu` is registered by one 1\.0 and other 1\.0\n    uninstall"):
        platforms.find("npu")
    with pytest.raises(UserError, match="unknown platform `x910`"):
        platforms.find("x910")
    assert "note: skipped: the platform `npu` is registered by one" in capsys.readouterr().err


def test_an_action_without_an_exit_code_fails(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("forgetful", {"actions": {"count": "forgetful:count"}}, "def count(request): pass")
    (tmp_path / "config.yaml").write_text("experiment: {}\n")
    assert cli.main(["--config-path", str(tmp_path), "--config-name", "config", "action=count"]) == 1
    reported = "error: the action `count` (registered by forgetful 1.0) returned None, not an exit code"
    assert reported in capsys.readouterr().err


def test_a_platform_without_its_chip_cannot_train(
    installed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-path", "./examples/aquila/conf", "--config-name", "config", "action=dryrun"]
    assert cli.main([*words, f"experiment.exp_dir={tmp_path}", "+experiment.runner.platform=npu"]) == 2
    reported = capsys.readouterr().err
    assert "experiment.runner.platform: the platform `npu` cannot train: no package has the entry" in reported
    assert (
        "install the package that adds the chip `npu` (the platform is from thirdparty_chips 1.0)" in reported
    )


def test_packages_in_a_zip_file_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "packages.zip"
    with ZipFile(file, "w") as packed:
        packed.writestr(
            "zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n"
        )
        packed.writestr("zipped-1.0.dist-info/entry_points.txt", "[flagscale.platforms]\nnpu = zipped:NPU\n")
    monkeypatch.syspath_prepend(str(file))
    assert registry.names("platforms", platforms.BUILT_IN)["npu"] == "zipped:NPU"
    assert registry.registered_by("platforms", "npu") == "zipped 1.0"
