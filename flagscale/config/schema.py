"""The experiment level of a configuration: every key, its type, its default and what it means.

The names are those of FlagScale v0.6.0, so that its users' files keep working.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flagscale.config.command import DEFAULT_RUNNER
from flagscale.config.key_types import (
    NOT_EMPTY,
    HostCount,
    HostName,
    Name,
    NotEmpty,
    OpenName,
    Pairs,
    PerformanceName,
    Port,
    Positive,
    Ranks,
    RanksOnHost,
    Seconds,
    Streams,
    Text,
    UserPath,
    Whole,
    set_by_flagscale,
)


class Section(BaseModel):
    """A frozen group of keys; a key that is not listed is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: object) -> object:
        """Treat `key:` without a value as not given if the key has a default."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in fields or fields[key].is_required()
        }


class Task(Section):
    """What the job does, with which engine and program."""

    type: str = "train"
    """One of the engine's task types; also the name of the group that holds the engine's arguments."""
    backend: str
    """The engine: `megatron` (train), `vllm` (inference, serve), `lm_eval` (evaluate), or an installed
    package's."""
    entrypoint: str = ""
    """The program: a module (`megatron.flagscale.train_gpt`) or a path to a `.py`; default: the engine's."""


class SlurmGroup(Section):
    """Equal hosts of a heterogeneous job; other keys are options of sbatch, as in `SlurmJob`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Text] = Field(init=False)

    nnodes: Positive
    """How many hosts this group has."""
    nproc_per_node: Ranks = "auto"
    """Ranks per host; `auto`: the GPUs that the options of this group ask for on each host."""
    type: NotEmpty | None = None
    """The chip of these hosts, as `type=` in a hostfile; default: `experiment.runner.platform`."""

    def options(self) -> dict[str, str]:
        """Return the options of sbatch."""
        return dict(self.__pydantic_extra__)


class SlurmJob(Section):
    """What Slurm is asked for; other keys are long options of sbatch, `-` written as `_`: `partition`,
    `account`, `time`, `gres`, ... Values are passed on as they are written; an option without a value takes
    `true`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Text] = Field(init=False)

    requeue: bool = False
    """Whether the job saves and begins again at its time limit, after preemption and after a lost host."""
    groups: list[SlurmGroup] = []
    """The groups of hosts of a heterogeneous job, in rank order; default: all hosts are asked for alike."""

    def options(self) -> dict[str, str]:
        """Return the options of sbatch that hold for all hosts."""
        return dict(self.__pydantic_extra__)


class KubernetesVolume(Section):
    """A volume of the pods of a manifest."""

    claim: NotEmpty
    """The name of its PersistentVolumeClaim."""
    path: NotEmpty
    """Where the pods see it."""
    read_only: bool = False


class KubernetesPods(Section):
    """What the pods of `action=dryrun output=manifest` need besides the plan; no other command reads it."""

    image: NotEmpty | None = None
    """The container image, which has FlagScale and the engine installed."""
    name: NotEmpty | None = None
    """The name of the JobSet; default: `exp_name` as DNS takes it."""
    namespace: NotEmpty | None = None
    """Default: that of the `kubectl` which applies the manifest."""
    command: list[NotEmpty] = ["flagscale"]
    """How a pod calls FlagScale: `[python, /opt/FlagScale/run.py]` for a clone in the image."""
    volumes: list[KubernetesVolume] = []
    """The run directory (`exp_dir`) must be on one that all pods can write to."""
    resources: dict[str, Text] = {}
    """Quantities per pod, by resource: `memory: 200Gi`. Devices follow from the ranks per host."""
    shared_memory: Text | None = None
    """The size of `/dev/shm`, `64Gi`; default: the container runtime's (64 MiB)."""
    service_account: NotEmpty | None = None
    node_selector: dict[str, Text] = {}
    """Labels that the nodes must have."""
    image_pull_secrets: list[NotEmpty] = []
    """Names of the Secrets with which the image is pulled."""
    secrets_from: NotEmpty | None = None
    """The Secret that holds the job's secrets, by the names of their environment variables."""


class Runner(Section):
    """Where the job runs, and how it is started, watched and recovered."""

    type: str = DEFAULT_RUNNER
    """How the job gets its hosts and starts on them. `ssh`: hosts of the hostfile; without a hostfile, this
    host. `cloud`: a platform runs this command on every host. `slurm`: hosts of Slurm, in an allocation or
    submitted. Or an installed plugin's name."""
    options: dict[str, Any] = {}
    """The runner's own keys, if it has any, such as the partition and the time limit of a batch system."""
    slurm: SlurmJob = SlurmJob()
    """What Slurm is asked for, with `type: slurm`."""
    kubernetes: KubernetesPods = KubernetesPods()
    """What the pods of a Kubernetes manifest need, with `action=dryrun output=manifest`."""
    backend: Literal["torchrun"] = "torchrun"
    """The agent that starts the ranks of a host."""
    hostfile: UserPath | None = None
    """Path of a file with a line `host slots=N [type=NAME]` per host, or per range such as `node[01-04]`."""
    nnodes: HostCount | None = None
    """How many hosts of the hostfile to use; default: all. `"min:max"`: a restart may use fewer."""
    nproc_per_node: Ranks = "auto"
    """Ranks per host; `auto`: the hostfile's `slots`, otherwise one per device (on `cpu`: one)."""
    platform: str = "auto"
    """The chip: `nvidia`, `cpu`, or an installed plugin's name; `auto`: the chip of this host."""
    node_rank: Whole | None = None
    """The rank of this host among the hosts, with `type: cloud` only; default: the platform's value."""
    master_addr: HostName | None = None
    """The address at which the other hosts reach the first one."""
    master_port: Port | None = None
    """Rendezvous port on the first host; default: one that is free there."""
    rdzv_id: Text | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_conf: Pairs | None = None
    """torchrun's rendezvous, if the default does not fit."""
    redirects: Streams = "3"
    tee: Streams = "3"
    """torchrun's options: which streams of a rank go to files and to the host's log (3: both)."""
    log_dir: str | None = None
    """Where torchrun stores the streams of each rank; default: `logs/details` in the run directory."""
    local_addr: HostName | None = None
    monitor_interval: Seconds | None = None
    role: NotEmpty | None = None
    start_method: Literal["spawn", "fork", "forkserver"] | None = None
    event_log_handler: Literal["console", "dynamic_rendezvous", "null"] | None = None
    logs_specs: Annotated[str, NOT_EMPTY] | None = None
    local_ranks_filter: RanksOnHost | None = None
    duplicate_stdout_filters: Text | None = None
    duplicate_stderr_filters: Text | None = None
    numa_binding: Literal["node", "socket", "exclusive", "core-complex"] | None = None
    virtual_local_rank: bool = False
    """torchrun's arguments, passed on unchanged."""
    standalone: bool = False
    """torchrun's argument for a job on one host: nothing outside the host takes part in the rendezvous. This
    is so in any case unless `rdzv_endpoint`, `master_addr` or `master_port` is given."""
    shutdown_timeout: Positive = 3
    """Seconds that the other ranks of a host have to exit after one failed; they cannot do useful work."""
    module: Annotated[None, set_by_flagscale("write the module in experiment.task.entrypoint")] = None
    no_python: Annotated[None, set_by_flagscale("experiment.task.entrypoint is a Python program")] = None
    run_path: Annotated[None, set_by_flagscale("write the path in experiment.task.entrypoint")] = None
    signals_to_handle: Annotated[
        None, set_by_flagscale("for a save before the end, use exit_signal_handler and stop_grace")
    ] = None
    """torchrun's arguments that FlagScale sets itself; the reason is in the message."""
    max_restarts: Whole = 0
    """How often the job is restarted on all hosts, from the newest checkpoint, after a part of it died; and
    how often an instance behind an endpoint, or its router, is restarted alone."""
    restart_timeout: Seconds = 300.0
    """Seconds that a restart waits for all hosts; then it uses fewer (`nnodes: "min:max"`) or fails."""
    hang_timeout: Seconds | None = None
    """Seconds without an iteration after which the job counts as dead (before the first one, ten minutes
    more), or without an answer after which a server does; default: no limit."""
    per_node_task: bool = False
    """Whether each host runs the whole job by itself, as a job of one host, in a folder of its own."""
    no_shared_fs: bool = False
    """Whether the hosts do not share the run directory: scripts are then sent, and logs read back."""
    host_paths: dict[str, dict[str, str]] = {}
    """By host of the hostfile: prefixes of paths, and what replaces them there."""
    include: list[str] = []
    """Use only these hosts of the hostfile, or ranges of them: `node[1-4]`; default: all."""
    exclude: list[str] = []
    """Do not use these hosts of the hostfile, or ranges of them."""
    transport: str = "ssh"
    """How hosts other than this one are reached: `ssh`, or an installed plugin's name."""
    ssh_port: Port | None = None
    """Default: what `~/.ssh/config` says, else 22."""
    connect_timeout: Seconds = 10.0
    """Seconds that a host has to answer a connection."""
    python: str | None = None
    """The interpreter on the hosts; default: the one that runs this command."""
    start_timeout: Seconds = 60.0
    """Seconds within which every host must confirm that the job runs there."""
    ready_timeout: Seconds = 1800.0
    """Seconds that servers have to load their models and answer."""
    stop_grace: Seconds | None = None
    """Seconds that the ranks have to exit after SIGTERM, or that servers have to finish begun requests;
    default: the engine's, longer if it saves then."""

    def host_range(self, available: int) -> tuple[int, int]:
        """Return the smallest and largest number of hosts; both are `available` if `nnodes` is not given."""
        least, _, most = str(self.nnodes or available).partition(":")
        return int(least), int(most or least)


PASSED_TO_TORCHRUN = (
    "rdzv_conf",
    "monitor_interval",
    "shutdown_timeout",
    "log_dir",
    "redirects",
    "tee",
    "role",
    "start_method",
    "event_log_handler",
    "logs_specs",
    "local_ranks_filter",
    "duplicate_stdout_filters",
    "duplicate_stderr_filters",
    "numa_binding",
    "virtual_local_rank",
)
"""The keys of `experiment.runner` that are passed to torchrun under their own name."""


class Environment(Section):
    """Environment variables of every process of the job; the more specific setting wins."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Text] = Field(init=False)

    device_type_specific: dict[str, dict[OpenName, Text]] = {}
    """Variables by the `type=` of the hostfile."""
    node_specific: dict[str, dict[OpenName, Text]] = {}
    """Variables by the name of the host in the hostfile."""

    def common(self) -> dict[str, str]:
        """Return the variables of all hosts."""
        return dict(self.__pydantic_extra__)

    def on_host(self, name: str, kind: str) -> dict[str, str]:
        """Return the variables of one host."""
        special = (self.device_type_specific.get(kind, {}), self.node_specific.get(name, {}))
        return {**self.common(), **special[0], **special[1]}


class Commands(Section):
    """The user's own shell lines around a job."""

    before_start: str = ""
    """Shell lines at the top of each host's script; the start fails if one of them does."""
    after_stop: str = ""
    """Shell lines that `stop` runs on each host after ending the job; `stop` fails if one of them does."""


class TunerControl(Section):
    """How long tuning takes, and what follows it."""

    max_time_per_task: Seconds = 300
    """Seconds that one trial may take; the first one may take twice as long, because it prepares data."""
    train_iters: Annotated[Whole, Field(ge=2)] = 5
    """Iterations of a trial; the first ones warm up and do not count."""
    max_time: Seconds | None = None
    """Seconds after which no further trial starts; default: no limit."""
    max_trials: Positive | None = None
    """How many trials may run, counting those of earlier commands; default: no limit."""
    run_best: bool = True
    """Whether the winner is then started in `exp_dir`, as by `action=run`."""


class TunerAlgorithm(Section):
    """Which candidate is tried next."""

    name: Literal["estimate", "grid"] = "estimate"
    """`estimate`: the fastest by its estimate, until no other can be faster. `grid`: all of them."""
    priority: Literal["memory", "performance"] | None = None
    """With `grid`: start with those that need the least memory, or with the fastest; default: as listed."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> TunerAlgorithm:
        if self.priority and self.name != "grid":
            raise ValueError("`priority` has an effect with `name: grid` only; add that, or remove it")
        return self


class TunerMemory(Section):
    """The memory of a device."""

    model_name: Literal["default"] = "default"
    gpu_memory: Annotated[float, Field(gt=0)] | None = None
    """MiB that a process can use on a device; default: what is known of the chip."""


class TunerPerformance(Section):
    """The figure by which trials are compared; all of them rank equally, because batches are equal."""

    name: PerformanceName = "iteration_ms"
    """`iteration_ms`, `tokens_per_s` or `tflops_per_gpu`, or v0.6.0's text of the log line."""
    order: Literal["asc", "ascend", "desc", "descend"] | None = None
    """Which values are better: small ones (asc) or large ones (desc); default: as the name means."""

    @model_validator(mode="after")
    def _is_sensible(self) -> TunerPerformance:
        right = "asc" if self.name == "iteration_ms" else "desc"
        if self.order and not self.order.startswith(right):
            raise ValueError(f"`order: {self.order}` would choose the slowest; use `{right}`, or remove it")
        return self


class AutoTuner(Section):
    """The keys of `action=auto_tune`; other actions do not read them."""

    space: dict[str, Any] = {}
    """What to try: by argument of the engine a list of values, or `auto`. `data_parallel_size` limits the
    copies of the model, and `use_recompute` says whether to recompute. Other dimensions of v0.6.0 are `auto`
    if they are absent."""
    control: TunerControl = TunerControl()
    algo: TunerAlgorithm = TunerAlgorithm()
    memory_model: TunerMemory = TunerMemory()
    performance: TunerPerformance = TunerPerformance()


class ExperimentSection(Section):
    """The keys below `experiment`."""

    exp_name: NotEmpty
    """The run's name in lists and logs."""
    exp_dir: Annotated[UserPath, NOT_EMPTY]
    """The run directory: everything that the run writes is below it."""
    task: Task
    runner: Runner = Runner()
    envs: Environment = Environment()
    cmds: Commands = Commands()
    auto_tuner: AutoTuner = AutoTuner()
    chips: Annotated[UserPath, NOT_EMPTY] | None = None
    """A file of chips for estimates, besides those that FlagScale knows; see docs/planner.md."""


class Experiment(BaseModel):
    """A configuration that passed every check of the experiment level, with absolute paths."""

    model_config = ConfigDict(frozen=True)

    name: str
    exp_dir: Path
    task: Task
    runner: Runner
    envs: Environment
    cmds: Commands
    auto_tuner: AutoTuner = AutoTuner()
    chips: Path | None = None
    arguments: dict[str, Any]
    """The task group as plain values: sections of engine arguments."""
