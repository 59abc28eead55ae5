"""What Slurm prints about jobs, as read by `records`; the texts are those of Slurm 22.05.8."""

from __future__ import annotations

import pytest

from flagscale.runners.slurm.records import parse_jobs, seconds_of

RUNNING = """JobId=1 JobName=a b UserId=evil(0) x=y
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=(null)
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:00 TimeLimit=1-00:05:00 TimeMin=N/A
   SubmitTime=1796089884 EligibleTime=1796089885
   StartTime=1796089886 EndTime=1796176586 Deadline=N/A
   Partition=main AllocNode:Sid=localhost:8103
   ReqNodeList=(null) ExcNodeList=n3
   NodeList=n[1-2]
   BatchHost=n1
   NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   Command=(null)
   WorkDir=/tmp/a NodeList=n9
   Comment=hello JobState=FAILED Reason=x | y\x20
   StdErr=/tmp/o.txt
   Power=


"""

PENDING = """JobId=4 JobName=None
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   JobState=PENDING Reason=PartitionTimeLimit Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:00 TimeLimit=UNLIMITED TimeMin=N/A
   SubmitTime=1796089884 EligibleTime=Unknown
   StartTime=Unknown EndTime=Unknown Deadline=N/A
   Partition=high AllocNode:Sid=localhost:8103
   NodeList=
   NumNodes=1-2 NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*

"""

HETEROGENEOUS = """JobId=7 HetJobId=7 HetJobOffset=0 JobName=het.sh
   HetJobIdSet=7-8
   JobState=PENDING Reason=Resources Dependency=(null)
JobId=8 HetJobId=7 HetJobOffset=1 JobName=het.sh
   HetJobIdSet=7-8
   JobState=PENDING Reason=Resources Dependency=(null)

"""


def test_a_running_job_is_read_whatever_its_name_and_comment_contain() -> None:
    (job,) = parse_jobs(RUNNING)
    assert (job.job_id, job.name, job.user) == ("1", "a b UserId=evil(0) x=y", "root")
    assert (job.state, job.reason, job.comment) == ("RUNNING", "", "hello JobState=FAILED Reason=x | y")
    assert (job.submit, job.eligible, job.start, job.end) == (1796089884, 1796089885, 1796089886, 1796176586)
    assert (job.time_limit, job.nodes, job.node_count) == (86700.0, ("n1", "n2"), 2)
    assert (job.restarts, job.exit_code, job.partition, job.requeues) == (2, "0:0", "main", True)
    assert not job.is_over
    assert not job.is_waiting


def test_what_is_not_known_of_a_pending_job_is_none() -> None:
    (job,) = parse_jobs(PENDING)
    assert (job.name, job.user, job.reason) == ("None", "ada", "PartitionTimeLimit")
    assert (job.eligible, job.start, job.end, job.time_limit) == (None, None, None, None)
    assert (job.nodes, job.node_count, job.requeues) == ((), 1, False)
    assert job.is_waiting


def test_the_components_of_a_heterogeneous_job_name_their_leader() -> None:
    assert [(job.job_id, job.leader, job.name) for job in parse_jobs(HETEROGENEOUS)] == [
        ("7", "7", "het.sh"),
        ("8", "7", "het.sh"),
    ]


def test_a_comment_of_several_lines_does_not_change_the_record_before_it() -> None:
    text = RUNNING.replace("hello", "c\n   JobState=FAILED Restarts=9\n\nJobId=9 JobName=z\n")
    job = parse_jobs(text)[0]
    assert (job.job_id, job.state, job.restarts, job.nodes) == ("1", "RUNNING", 2, ("n1", "n2"))


def test_no_record_is_read_from_other_words() -> None:
    assert parse_jobs("No jobs in the system\n") == []


@pytest.mark.parametrize(
    ("reason", "is_held"),
    [("JobHeldUser", True), ("launch_failed_requeued_held", True), ("Priority", False)],
)
def test_a_job_that_waits_for_its_release_is_held(reason: str, is_held: bool) -> None:
    (job,) = parse_jobs(PENDING.replace("PartitionTimeLimit", reason))
    assert job.is_held is is_held


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:05:00", 300), ("2-01:00:01", 176401), ("UNLIMITED", None), ("Partition_Limit", None), ("", None)],
)
def test_time_limits_are_seconds(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds
