"""Files and command lines in which a person's hand has slipped: never a traceback, and nothing is written.

`make fuzz` runs many more such trials, at random; these are the same in every run.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import slips
from tests.fuzz.projects import PROJECTS, Project
from tests.fuzz.trial import broken_promise, dryrun

_SAME = {
    "derandomize": True,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
}


def test_the_projects_themselves_are_sound() -> None:
    outcomes = {project.name: dryrun(project) for project in PROJECTS}
    assert {name: outcome.printed for name, outcome in outcomes.items() if outcome.code} == {}


@settings(max_examples=55, **_SAME)
@given(slips.yaml_slips(of_task=False))
def test_slips_in_an_experiment_file(project: Project) -> None:
    assert broken_promise(dryrun(project)) == ""


@settings(max_examples=45, **_SAME)
@given(slips.yaml_slips(of_task=True))
def test_slips_in_a_task_file(project: Project) -> None:
    assert broken_promise(dryrun(project)) == ""


@settings(max_examples=15, **_SAME)
@given(slips.hostfile_slips())
def test_slips_in_a_hostfile(project: Project) -> None:
    assert broken_promise(dryrun(project)) == ""


@settings(max_examples=35, **_SAME)
@given(slips.word_slips())
def test_slips_on_the_command_line(project: Project) -> None:
    assert broken_promise(dryrun(project)) == ""
