"""Fragments with which a hand may slip, several per line. Each is harmless to other software."""

from __future__ import annotations


def _fragments(text: str, *others: str) -> list[str]:
    """Return the parts of a text between `¦`, and further ones that are long or not printable."""
    lines = text.strip("\n").splitlines()
    return [part.strip(" ") for line in lines for part in line.split("¦")] + [*others]


VALUES = _fragments(
    r"""
null ¦ ~ ¦ true ¦ no ¦ 3 ¦ -1 ¦ 0 ¦ 0022 ¦ 1e400 ¦ .nan ¦ .inf ¦ -.inf ¦ 1:30 ¦ 1_0 ¦ [] ¦ {} ¦ [1, 2]
[[1], {a: 2}] ¦ {a: {b: [c]}} ¦ [null] ¦ {null: 1} ¦ {1: 2} ¦ a: b: c ¦ 2024-13-45 ¦ 2024-01-02
!!timestamp 2024-13-45 ¦ !!int x ¦ !!int '' ¦ !!float x ¦ !!bool x ¦ !!binary aGVsbG8= ¦ !!binary '%'
!!set {a, b} ¦ !!omap [a: 1] ¦ !!pairs [a] ¦ !!str [a] ¦ !!python/name:os.system ¦ !!python/tuple [1]
!!python/object/apply:pathlib.Path [a] ¦ !mine x ¦ 0x_ ¦ 0b_ ¦ 0o9 ¦ ._ ¦ 1e99999 ¦ &a [*a] ¦ &a {b: *a}
*absent ¦ &a ¦ << ¦ [<<] ¦ ? x ¦ - x ¦ | x ¦ > ¦ ' ¦ " ¦ ` ¦ @ ¦ % ¦ 'one ¦ "\q" ¦ "\ud800" ¦ é ¦ 漢字 ¦ 😀
${ ¦ ${} ¦ ${x ¦ ${nothing} ¦ ${a.b} ¦ ${.} ¦ ${..} ¦ ${oc.env:NO_SUCH} ¦ ${oc.env} ¦ ${x:y}
${experiment} ¦ ${experiment.exp_name} ¦ ${train} ¦ ${oc.decode:'['} ¦ ${oc.create:3} ¦ ???
${experiment.task.type}${ ¦ ${experiment.runner.${action}} ¦ $(x) ¦ ~/x ¦ / ¦ . ¦ .. ¦ a/../b
${oc.select:x,y} ¦ ${oc.dict.keys:experiment} ¦ ${oc.dict.values:train} ¦ ${oc.deprecated:x}
[0, 1, 1, 2] ¦ "[0]*1+[1]*" ¦ sigmoid ¦ yarn ¦ a2a ¦ [a2a, p2p] ¦ [2, 2] ¦ [mla_up_proj] ¦ full ¦ 7 ¦ 0.5
${hydra:job.num} ¦ ${hydra:run.dir} ¦ ${hydra:nothing} ¦ ${now:%Y} ¦ ${now:} ¦ ${python_version:x}
""",
    "9" * 5000,
    "x" * 300,
    "x/" * 3000,
    "0x" + "f" * 5000,
    "[" * 300,
    "[" * 60 + "]" * 60,
    "\ud800",
    "\u0000",
    "\u0007",
    "\ufeff",
    "\u2028x",
    "\u00a0",
)
"""Values that a key may be given."""
KEYS = _fragments(
    r"""
1 ¦ true ¦ null ¦ ~ ¦ 1.5 ¦ .nan ¦ .inf ¦ [a] ¦ {a: b} ¦ ? a ¦ ? [a, b] ¦ << ¦ <<: *absent # ¦ "" ¦ ' '
a.b ¦ a b ¦ a/b ¦ a=b ¦ - ¦ *a ¦ &a b ¦ !!int 1 ¦ !!binary aGk= ¦ 0x10 ¦ on ¦ é ¦ defaults ¦ hydra
experiment ¦ train ¦ action ¦ task ¦ type ¦ runner ¦ envs ¦ _self_ ¦ ${a} ¦ ${experiment.exp_name} ¦ @a
a@b ¦ [0] ¦ _target_ ¦ override a ¦ optional a
multi_latent_attention ¦ q_lora_rank ¦ kv_lora_rank ¦ qk_head_dim ¦ rope_type ¦ rotary_scaling_factor
yarn_beta_fast ¦ moe_layer_freq ¦ moe_router_topk ¦ moe_router_num_groups ¦ moe_router_group_best
mtp_num_layers ¦ cp_comm_type ¦ hierarchical_context_parallel_sizes ¦ recompute_modules
recompute_granularity ¦ context_parallel_size ¦ ulysses_sp_parallel_size
moe_router_load_balancing_type ¦ moe_aux_loss_coeff
""",
    "\u0000",
    "9" * 5000,
)
"""What may stand before a colon."""
ENTRIES = _fragments(
    r"""
_self_ ¦ 1 ¦ null ¦ ~ ¦ [a] ¦ {} ¦ [] ¦ {a: {b: c}} ¦ {a: 1} ¦ {a: [b]} ¦ {a: [1]} ¦ {1: a}
{train: null} ¦ {train: demo} ¦ {train: [demo]} ¦ {train: demo.yaml} ¦ {train: absent} ¦ {a: b, c: d}
override train: demo ¦ override train: demo # ¦ optional train: absent ¦ optional absent ¦ train
train: ../train/demo ¦ train: /etc/hostname ¦ /absolute ¦ absent ¦ config ¦ config.yaml ¦ ./config
train/demo ¦ train/demo@x ¦ train@x: demo ¦ train@: demo ¦ train@_global_: demo ¦ /train: demo
train@a.b.c: demo ¦ train@a:b: demo ¦ train@_here_: demo ¦ train@_group_: demo ¦ hydra: default
hydra/launcher: joblib ¦ override hydra/launcher: x ¦ override hydra/job_logging: x ¦ hydra/output: x
train: ${nothing} ¦ train: ${experiment.task.type} ¦ train: ${ ¦ train: ??? ¦ ??? ¦ train: '' ¦ ''
true ¦ 1.5 ¦ {null: a} ¦ {true: a} ¦ {[a]: b} ¦ [[a]] ¦ "a b" ¦ a: b: c ¦ *x ¦ &x _self_
!!python/name:x ¦ train: !!binary aGk= ¦ dir ¦ train: dir ¦ override _self_ ¦ override absent
{_self_: a}
""",
    "train: demo\n  serve: demo",
    "train: " + "9" * 5000 + "9",
    "train: \u0000",
    "train: 'a\nb'",
    "train: " + "x" * 300,
)
"""Entries of a defaults list."""
DEFAULTS = _fragments(
    r"""
{} ¦ 1 ¦ null ¦ '' ¦ true ¦ train ¦ train: demo ¦ [] ¦ {train: demo} ¦ *x ¦ ${x} ¦ [ ¦ _self_
""",
)
"""What may stand in place of a defaults list."""
HYDRA = _fragments(
    r"""
3 ¦ null ¦ [] ¦ x ¦ true ¦ {} ¦ ${x} ¦ ??? ¦ *x ¦ {nothing: 1} ¦ {run: 3} ¦ {run: {dir: 3}}
{run: {dir: [a]}} ¦ {run: null} ¦ {run: {dir: '${x}'}} ¦ {sweep: 1} ¦ {job: 1} ¦ {job: {name: null}}
{job: {chdir: true}} ¦ {job: {chdir: 3}} ¦ {job: {env_set: {A: b}}} ¦ {job: {env_set: 3}} ¦ {mode: X}
{job: {env_copy: [NO_SUCH_VARIABLE]}} ¦ {job: {config: 3}} ¦ {mode: RUN} ¦ {mode: MULTIRUN} ¦ {mode: 7}
{launcher: null} ¦ {launcher: 3} ¦ {sweeper: null} ¦ {sweeper: {params: 3}} ¦ {sweeper: {x: 1}}
{searchpath: 3} ¦ {searchpath: [3]} ¦ {searchpath: [absent]} ¦ {searchpath: ['pkg://absent']}
{searchpath: ['x://y']} ¦ {searchpath: [null]} ¦ {searchpath: '${x}'} ¦ {callbacks: 3} ¦ {verbose: 3}
{callbacks: {a: 3}} ¦ {callbacks: {a: {_target_: no.such}}} ¦ {callbacks: {a: {}}} ¦ {verbose: [a]}
{verbose: {}} ¦ {job_logging: 3} ¦ {hydra_logging: {version: 2}} ¦ {output_subdir: x} ¦ {help: 3}
{overrides: 3} ¦ {overrides: {task: 3}} ¦ {runtime: 3} ¦ {runtime: {choices: 3}} ¦ {env: 3} ¦ {1: 2}
{job: {override_dirname: {}}} ¦ {job: {config_name: 3}} ¦ {job_logging: {version: 1, root: {level: X}}}
""",
)
"""Values of a section `hydra`."""
HEADERS = _fragments(
    r"""
# @package ¦ # @package x ¦ # @package _global_ ¦ # @package _group_.x ¦ # @package a.b. ¦ # @package .
# @package a b c ¦ # @package experiment ¦ #@package: x ¦ # @package 1 ¦ # @package [0]
# @package ${x} ¦ # @x ¦ # @package _group_ ¦ # @ package ¦ # @package experiment.task.type
# @package hydra ¦ %YAML 9.9 ¦ %TAG ! x ¦ --- x ¦ ... ¦ --- ¦ ! ¦ !!map ¦ &x ¦ ]
""",
    "\ufeff",
    "\ufeff\ufeff",
    "\t",
    "- ",
    "? ",
    ": ",
)
"""First lines of a file."""
WHOLE = _fragments(
    r"""
 
""",
    "\n\n",
    "# nothing\n",
    "3\n",
    "word\n",
    "- a\n- b\n",
    "null\n",
    "a: 1\n---\nb: 2\n",
    "[\n",
    "{}\n",
    "\u00ff\u00fe\u0000",
    "a: \u00e9\n",
    "\u0089PNG\r\n\u001a\n\u0000\u0000",
    "\u0000",
    "experiment: 3\n",
    "experiment:\n",
    "train: 3\n",
    "experiment: [a]\n",
    "experiment: {task: 3}\n",
    "experiment: {task: [a]}\n",
    "--- !!set {a}\n",
    "!!str x\n",
    "defaults:\n",
    "defaults: []\n",
    "'a: b'\n",
    "&a [*a]\n",
    "a: &a {b: *a}\n",
    "!!binary aGk=\n",
    "2024-01-02\n",
    "train: {a: 1}\ntrain: {b: 2}\n",
    "true\n",
    "1.5\n",
    "---\n---\n",
    "...\n",
    "[]\n",
    "'${a}'\n",
    "'${'\n",
    "???\n",
    "'???'\n",
    "${a}\n",
    "x: y: z\n",
    "{a: 1, a: 2}\n",
    "[{a: 1, a: 2}]\n",
    "? [a]\n: b\n",
)
"""Whole files."""
WORDS = _fragments(
    r"""
+a=[ ¦ a.b.c=1 ¦ ~x ¦ ++x= ¦ =3 ¦ action=[dryrun] ¦ action= ¦ action=null ¦ action=3 ¦ action={}
hydra/launcher=joblib ¦ hydra.launcher=3 ¦ hydra.mode=X ¦ hydra.mode=null ¦ hydra=3 ¦ +hydra.x=1
~hydra ¦ hydra.run.dir= ¦ hydra.searchpath=3 ¦ hydra.searchpath=[absent] ¦ hydra.job.env_set.A=b
hydra.verbose=[a] ¦ hydra.verbose=true ¦ hydra.job.chdir=3 ¦ hydra.job.env_copy=[NO_SUCH]
hydra/output=x ¦ ~hydra.job ¦ hydra.callbacks=3 ¦ hydra.sweeper=null ¦ hydra.job=null ¦ hydra.runtime=3
hydra.overrides=null ¦ train=absent ¦ train=3 ¦ train=[demo] ¦ train=null ¦ train= ¦ +train=demo
~train ¦ ~train=demo ¦ ~train=other ¦ train={a: 1} ¦ train@x=demo ¦ +train@x=demo ¦ train@train:x=demo
++train=demo ¦ train=a,b ¦ x ¦  ¦ - ¦ -- ¦ --- ¦ ' ¦ " ¦ a='b ¦ a="b ¦ a=( ¦ a=) ¦ a=] ¦ a=} ¦ a={
a={b ¦ a=[b,,] ¦ a=$ ¦ a=${ ¦ a=${} ¦ a=${b} ¦ a=${b: ¦ a=${a} ¦ a=b c ¦ a =b ¦ a==b ¦ a=b=c ¦ a:b=c
a@b=c ¦ a/b=c ¦ /a=b ¦ a/=b ¦ .a=b ¦ a.=b ¦ a..b=c ¦ [0]=a ¦ a[0]=b ¦ 1=2 ¦ 1.2=3 ¦ null=1 ¦ true=1
-a=b ¦ é=1 ¦ a=é ¦ a=😀 ¦ a=1e999 ¦ a=[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[
a=[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]] ¦ a=range(1)
a=choice(1,2) ¦ a=int(x) ¦ a=nothing(1) ¦ a=sort() ¦ a=range(1,3) ¦ a=glob(*) ¦ a=shuffle(1,2)
a=interval(0,1) ¦ a=tag(x,1) ¦ a=extend_list(1) ¦ a=json_str(x) ¦ experiment=3 ¦ experiment=null
~experiment ¦ experiment={} ¦ experiment=[a] ¦ experiment.task=train ¦ experiment.task.type=[a]
experiment.task.type={} ¦ experiment.task.type=null ¦ experiment.task.type=3 ¦ experiment.task.type.x=1
experiment.exp_name.x=1 ¦ experiment.runner=3 ¦ experiment.runner.nnodes=[1] ¦ experiment.runner.0=1
experiment.envs=[A] ¦ experiment.envs.1BAD=x ¦ experiment.envs.A.B=1 ¦ defaults=[a]
experiment.exp_dir=??? ¦ experiment.exp_dir=${experiment.exp_dir} ¦ defaults=null
experiment.runner.hostfile=. ¦ experiment.runner.hostfile=/dev/null/x ¦ experiment.runner.hostfile=[a]
experiment.runner.include=[1] ¦ experiment.runner.host_paths={1: 2} ¦ experiment.task.entrypoint=..
experiment.task.entrypoint='' ¦ experiment.task.entrypoint=a..b ¦ experiment.task.entrypoint=.py
experiment.task.entrypoint=/ ¦ -x ¦ output=3 ¦ follow=x ¦ output={a: 1} ¦ --cfg ¦ --cfg=x ¦ --cfg=job
--resolve ¦ --info ¦ --info=x ¦ --package=x ¦ --config-dir=absent ¦ --config-dir ¦ --run ¦ --config-name
--config-name= ¦ --nothing ¦ --config-path ¦ --config-path= ¦ --config-path=pkg://x ¦ --config-name=../x
--config-name=/ ¦ --config-name=. ¦ --config-name=config.yaml ¦ --config-name=train ¦ --config-name=[a]
-m ¦ --multirun ¦ hydra.mode=MULTIRUN ¦ a=1,2 ¦ experiment.exp_dir=a,b ¦ -cn ¦ -cp ¦ -cd=x ¦ --help
--experimental-rerun=absent ¦ --shell-completion ¦ --hydra-help ¦ -sc ¦ query=x ¦ install=x
""",
    " ",
    "a=\\",
    "a= ",
    " a=b",
    "a=\ud800",
    "\udcff=1",
    "a=\n",
    "a\n=b",
    "a=\t",
    "a=\u0007",
    "a=" + "9" * 5000,
    "experiment.exp_dir='a\u0000b'",
    "experiment.runner.hostfile='\u0000'",
    "experiment.task.entrypoint='a\u0000.py'",
    "--config-name=a\u0000b",
    "--config-path=a\u0000b",
)
"""Words of a command line. None may start a job."""
HOST_LINES = _fragments(
    r"""
# ¦ a ¦ a slots ¦ a slots= ¦ a slots=x ¦ a slots=0 ¦ a slots=-1 ¦ a slots=1.5 ¦ a slots=4 slots=4
a slots=4 type= ¦ a slots=4 type=nothing ¦ a:4 ¦ a 4 ¦ slots=4 ¦ a slots = 4 ¦ = ¦ a slots=4 x=y ¦ a, b
a;b slots=1 ¦ user@a slots=1 ¦ [::1] slots=1 ¦ ::1 slots=1 ¦ a slots=٣ ¦ é slots=1
localhost slots=4 type=cpu ¦ -a slots=1 ¦ a- slots=1 ¦ [group] ¦ a: {slots: 4} ¦ - a ¦ a ansible_host=b
node[1-4] slots=8 ¦ a max_slots=3 ¦ * ¦ a/b slots=1
""",
    "a slots=" + "9" * 5000,
    "\u0000",
    "a slots=4\\",
    "\ufeffa slots=1",
    "a\tslots=1",
    "\u0085",
    "\u2028",
)
"""Lines of a hostfile."""
SSH_VALUES = _fragments(
    r"""
none ¦ yes ¦ no ¦ 0 ¦ 22 ¦ 99999 ¦ -1 ¦ 1.5 ¦ x ¦ %h ¦ %% ¦ % ¦ %z ¦ %h%p%r ¦ ${HOME} ¦ ${NO_SUCH} ¦ ${
~ ¦ ~nobody-here/x
"a b" ¦ "a ¦ 'a ¦ \ ¦ \" ¦ a\ b ¦ "" ¦ * ¦ ? ¦ ! ¦ !* ¦ [a ¦ [a-z] ¦ [!a] ¦ ** ¦ a,b ¦ ,, ¦ a,,b ¦ # x
a # b ¦ = ¦ == ¦ a=b
user@host ¦ user@host:22 ¦ host:0 ¦ host:99999 ¦ host:x ¦ [::1]:22 ¦ [::1 ¦ ::1 ¦ ssh://user@host:22
ssh:// ¦ a,b,c
all ¦ final ¦ canonical ¦ exec true ¦ exec ¦ host ¦ host a ¦ host=a ¦ !host a ¦ user me host gpu-1
all host a ¦ localnetwork x
config ¦ ../config ¦ config.d ¦ /dev/null ¦ /nonexistent/* ¦ ** ¦ *[ ¦ ssh -W %h:%p jump
nc %h %p | cat ¦ é ¦ 漢字
|1|a|b ¦ |1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|x ¦ | ¦ |2|a|b ¦ @revoked ¦ @cert-authority ¦ ssh-rsa
ssh-ed25519 AAAA
""",
    "",
    "9" * 5000,
    "\u0000",
    "\u00a0",
    "x" * 300,
)
"""Values of options of `ssh`, and words of known hosts."""
SSH_LINES = _fragments(
    r"""
Host ¦ Host = ¦ Host * ¦ Host "gpu-1 ¦ Match ¦ Match all ¦ Match final ¦ Match exec "true" ¦ Match host
Match nothing a
Match !all ¦ Match final all ¦ Match canonical ¦ Match tagged x ¦ Match host gpu-1 exec "true"
Include ¦ Include config
Include * ¦ Include "a ¦ Include ~/.ssh/config ¦ Include /etc/hostname ¦ Port ¦ Port 22 23 ¦ Port x
User ¦ User "" ¦ HostName
HostName %z ¦ ProxyJump none ¦ ProxyJump gpu-1 ¦ ProxyJump a, ¦ ProxyCommand ¦ ProxyCommand none
ProxyCommand %z
IdentityFile ¦ IdentityFile none ¦ IdentityFile %d/%u/%z ¦ IdentityFile ~nobody-here/x
IdentitiesOnly maybe ¦ NoSuchOption 1
CanonicalizeHostname yes ¦ StrictHostKeyChecking no ¦ UserKnownHostsFile "a b" c ¦ GlobalKnownHostsFile
Tag x ¦ = ¦ "a" b ¦ \
gpu-1 ¦ gpu-1 ssh-ed25519 ¦ gpu-1 ssh-ed25519 AAAA ¦ gpu-1 ssh-ed25519 %%%
@revoked gpu-1 ssh-ed25519 AAAA ¦ @revoked ¦ , ,
""",
)
"""Lines of a configuration of `ssh`, or of known hosts."""
