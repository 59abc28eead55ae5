"""Strategies: what a hand that slips does to an experiment, a hostfile, a command line."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.projects import CONFIG, HOSTS, PROJECTS, Project

VALUES = [
    *("", "null", "~", "true", "no", "3", "-1", "0", "0022", "1e400", ".nan", ".inf", "-.inf", "1:30", "1_0"),
    *("[]", "{}", "[1, 2]", "[[1], {a: 2}]", "{a: {b: [c]}}", "[null]", "{null: 1}", "{1: 2}", "a: b: c"),
    *("2024-13-45", "2024-01-02", "!!timestamp 2024-13-45", "!!int x", "!!int ''", "!!float x", "!!bool x"),
    *("!!binary aGVsbG8=", "!!binary '%'", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a]", "!!str [a]"),
    *("!!python/name:os.system", "!!python/tuple [1]", "!!python/object/apply:pathlib.Path [a]", "!mine x"),
    *("0x_", "0b_", "0o9", "._", "9" * 5000, "1e99999", "0x" + "f" * 5000, "[" * 300, "[" * 60 + "]" * 60),
    *(
        "&a [*a]",
        "&a {b: *a}",
        "*absent",
        "&a",
        "<<",
        "[<<]",
        "? x",
        "- x",
        "| x",
        ">",
        "'",
        '"',
        "`",
        "@",
        "%",
    ),
    *("'one", '"\\q"', '"\\ud800"', "\ud800", "\0", "\x07", "\ufeff", "\u2028x", "é", "漢字", "\u00a0", "😀"),
    *(
        "${",
        "${}",
        "${x",
        "${nothing}",
        "${a.b}",
        "${.}",
        "${..}",
        "${oc.env:NO_SUCH}",
        "${oc.env}",
        "${x:y}",
    ),
    *("${experiment}", "${experiment.exp_name}", "${train}", "${oc.decode:'['}", "${oc.create:3}", "???"),
    *("${experiment.task.type}${", "${experiment.runner.${action}}", "$(x)", "~/x", "/", ".", "..", "a/../b"),
    *("${oc.select:x,y}", "${oc.dict.keys:experiment}", "${oc.dict.values:train}", "${oc.deprecated:x}"),
    *(
        "${hydra:job.num}",
        "${hydra:run.dir}",
        "${hydra:nothing}",
        "${now:%Y}",
        "${now:}",
        "${python_version:x}",
    ),
]
KEYS = [
    *(
        "1",
        "true",
        "null",
        "~",
        "1.5",
        ".nan",
        ".inf",
        "[a]",
        "{a: b}",
        "? a",
        "? [a, b]",
        "<<",
        "<<: *absent #",
    ),
    *(
        '""',
        "' '",
        "a.b",
        "a b",
        "a/b",
        "a=b",
        "-",
        "*a",
        "&a b",
        "!!int 1",
        "!!binary aGk=",
        "0x10",
        "on",
        "é",
    ),
    *("defaults", "hydra", "experiment", "train", "action", "task", "type", "runner", "envs", "_self_", "\0"),
    *(
        "${a}",
        "${experiment.exp_name}",
        "@a",
        "a@b",
        "[0]",
        "_target_",
        "override a",
        "optional a",
        "9" * 5000,
    ),
]
ENTRIES = [
    *(
        "_self_",
        "1",
        "null",
        "~",
        "[a]",
        "{}",
        "[]",
        "{a: {b: c}}",
        "{a: 1}",
        "{a: [b]}",
        "{a: [1]}",
        "{1: a}",
    ),
    *(
        "{train: null}",
        "{train: demo}",
        "{train: [demo]}",
        "{train: demo.yaml}",
        "{train: absent}",
        "{a: b, c: d}",
    ),
    *("override train: demo", "override train: demo #", "optional train: absent", "optional absent", "train"),
    *(
        "train: ../train/demo",
        "train: /etc/hostname",
        "/absolute",
        "absent",
        "config",
        "config.yaml",
        "./config",
    ),
    *("train/demo", "train/demo@x", "train@x: demo", "train@: demo", "train@_global_: demo", "/train: demo"),
    *("train@a.b.c: demo", "train@a:b: demo", "train@_here_: demo", "train@_group_: demo", "hydra: default"),
    *(
        "hydra/launcher: joblib",
        "override hydra/launcher: x",
        "override hydra/job_logging: x",
        "hydra/output: x",
    ),
    *(
        "train: ${nothing}",
        "train: ${experiment.task.type}",
        "train: ${",
        "train: ???",
        "???",
        "train: ''",
        "''",
    ),
    *(
        "true",
        "1.5",
        "{null: a}",
        "{true: a}",
        "{[a]: b}",
        "[[a]]",
        '"a b"',
        "train: demo\n  serve: demo",
        "a: b: c",
    ),
    *(
        "*x",
        "&x _self_",
        "!!python/name:x",
        "train: 9" + "9" * 5000,
        "train: !!binary aGk=",
        "dir",
        "train: dir",
    ),
    *(
        "train: \0",
        "train: 'a\nb'",
        "train: " + "x" * 300,
        "override _self_",
        "override absent",
        "{_self_: a}",
    ),
]
DEFAULTS = [
    "{}",
    "1",
    "null",
    "''",
    "true",
    "train",
    "train: demo",
    "[]",
    "{train: demo}",
    "*x",
    "${x}",
    "[",
    "_self_",
]
HYDRA = [
    *(
        "3",
        "null",
        "[]",
        "x",
        "true",
        "{}",
        "${x}",
        "???",
        "*x",
        "{nothing: 1}",
        "{run: 3}",
        "{run: {dir: 3}}",
    ),
    *(
        "{run: {dir: [a]}}",
        "{run: null}",
        "{run: {dir: '${x}'}}",
        "{sweep: 1}",
        "{job: 1}",
        "{job: {name: null}}",
    ),
    *(
        "{job: {chdir: true}}",
        "{job: {chdir: 3}}",
        "{job: {env_set: {A: b}}}",
        "{job: {env_set: 3}}",
        "{mode: X}",
    ),
    *(
        "{job: {env_copy: [NO_SUCH_VARIABLE]}}",
        "{job: {config: 3}}",
        "{mode: RUN}",
        "{mode: MULTIRUN}",
        "{mode: 7}",
    ),
    *("{launcher: null}", "{launcher: 3}", "{sweeper: null}", "{sweeper: {params: 3}}", "{sweeper: {x: 1}}"),
    *("{searchpath: 3}", "{searchpath: [3]}", "{searchpath: [absent]}", "{searchpath: ['pkg://absent']}"),
    *(
        "{searchpath: ['x://y']}",
        "{searchpath: [null]}",
        "{searchpath: '${x}'}",
        "{callbacks: 3}",
        "{verbose: 3}",
    ),
    *(
        "{callbacks: {a: 3}}",
        "{callbacks: {a: {_target_: no.such}}}",
        "{callbacks: {a: {}}}",
        "{verbose: [a]}",
    ),
    *(
        "{verbose: {}}",
        "{job_logging: 3}",
        "{hydra_logging: {version: 2}}",
        "{output_subdir: x}",
        "{help: 3}",
    ),
    *(
        "{overrides: 3}",
        "{overrides: {task: 3}}",
        "{runtime: 3}",
        "{runtime: {choices: 3}}",
        "{env: 3}",
        "{1: 2}",
    ),
    *(
        "{job: {override_dirname: {}}}",
        "{job: {config_name: 3}}",
        "{job_logging: {version: 1, root: {level: X}}}",
    ),
]
HEADERS = [
    *(
        "# @package",
        "# @package x",
        "# @package _global_",
        "# @package _group_.x",
        "# @package a.b.",
        "# @package .",
    ),
    *(
        "# @package a b c",
        "# @package experiment",
        "#@package: x",
        "# @package 1",
        "# @package [0]",
        "# @package ${x}",
    ),
    *(
        "# @x",
        "# @package _group_",
        "# @ package",
        "# @package experiment.task.type",
        "# @package hydra",
        "%YAML 9.9",
    ),
    *(
        "%TAG ! x",
        "--- x",
        "...",
        "---",
        "\ufeff",
        "\ufeff\ufeff",
        "\t",
        "!",
        "!!map",
        "&x",
        "- ",
        "? ",
        ": ",
        "]",
    ),
]
WHOLE = [
    *(
        b"",
        b"\n\n",
        b"# nothing\n",
        b"3\n",
        b"word\n",
        b"- a\n- b\n",
        b"null\n",
        b"a: 1\n---\nb: 2\n",
        b"[\n",
        b"{}\n",
    ),
    *(
        b"\xff\xfe\x00",
        b"a: \xe9\n",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\0",
        b"experiment: 3\n",
        b"experiment:\n",
        b"train: 3\n",
    ),
    *(
        b"experiment: [a]\n",
        b"experiment: {task: 3}\n",
        b"experiment: {task: [a]}\n",
        b"--- !!set {a}\n",
        b"!!str x\n",
    ),
    *(
        b"defaults:\n",
        b"defaults: []\n",
        b"'a: b'\n",
        b"&a [*a]\n",
        b"a: &a {b: *a}\n",
        b"!!binary aGk=\n",
        b"2024-01-02\n",
    ),
    *(
        b"train: {a: 1}\ntrain: {b: 2}\n",
        b"true\n",
        b"1.5\n",
        b"---\n---\n",
        b"...\n",
        b"[]\n",
        b"'${a}'\n",
        b"'${'\n",
    ),
    *(b"???\n", b"'???'\n", b"${a}\n", b"x: y: z\n", b"{a: 1, a: 2}\n", b"[{a: 1, a: 2}]\n", b"? [a]\n: b\n"),
]
BOMB = "bomb: [&a [1, 1], &b [*a, *a], &c [*b, *b], &d [*c, *c], &e [*d, *d], &f [*e, *e], &g [*f, *f]]"
WORDS = [
    *(
        "+a=[",
        "a.b.c=1",
        "~x",
        "++x=",
        "=3",
        "action=[dryrun]",
        "action=",
        "action=null",
        "action=3",
        "action={}",
    ),
    *(
        "hydra/launcher=joblib",
        "hydra.launcher=3",
        "hydra.mode=X",
        "hydra.mode=null",
        "hydra=3",
        "+hydra.x=1",
        "~hydra",
    ),
    *(
        "hydra.run.dir=",
        "hydra.searchpath=3",
        "hydra.searchpath=[absent]",
        "hydra.job.env_set.A=b",
        "hydra.verbose=[a]",
    ),
    *(
        "hydra.verbose=true",
        "hydra.job.chdir=3",
        "hydra.job.env_copy=[NO_SUCH]",
        "hydra/output=x",
        "~hydra.job",
    ),
    *("hydra.callbacks=3", "hydra.sweeper=null", "hydra.job=null", "hydra.runtime=3", "hydra.overrides=null"),
    *(
        "train=absent",
        "train=3",
        "train=[demo]",
        "train=null",
        "train=",
        "+train=demo",
        "~train",
        "~train=demo",
    ),
    *(
        "~train=other",
        "train={a: 1}",
        "train@x=demo",
        "+train@x=demo",
        "train@train:x=demo",
        "++train=demo",
        "train=a,b",
    ),
    *(
        "x",
        "",
        " ",
        "-",
        "--",
        "---",
        "'",
        '"',
        "a='b",
        'a="b',
        "a=(",
        "a=)",
        "a=]",
        "a=}",
        "a={",
        "a={b",
        "a=[b,,]",
        "a=\\",
    ),
    *(
        "a=$",
        "a=${",
        "a=${}",
        "a=${b}",
        "a=${b:",
        "a=${a}",
        "a=b c",
        "a= ",
        " a=b",
        "a =b",
        "a==b",
        "a=b=c",
        "a:b=c",
        "a@b=c",
    ),
    *(
        "a/b=c",
        "/a=b",
        "a/=b",
        ".a=b",
        "a.=b",
        "a..b=c",
        "[0]=a",
        "a[0]=b",
        "1=2",
        "1.2=3",
        "null=1",
        "true=1",
        "-a=b",
    ),
    *(
        "é=1",
        "a=é",
        "a=\ud800",
        "\udcff=1",
        "a=😀",
        "a=\n",
        "a\n=b",
        "a=\t",
        "a=\x07",
        "a=" + "9" * 5000,
        "a=1e999",
    ),
    *(
        "a=" + "[" * 40,
        "a=" + "[" * 40 + "]" * 40,
        "a=range(1)",
        "a=choice(1,2)",
        "a=int(x)",
        "a=nothing(1)",
        "a=sort()",
    ),
    *(
        "a=range(1,3)",
        "a=glob(*)",
        "a=shuffle(1,2)",
        "a=interval(0,1)",
        "a=tag(x,1)",
        "a=extend_list(1)",
        "a=json_str(x)",
    ),
    *(
        "experiment=3",
        "experiment=null",
        "~experiment",
        "experiment={}",
        "experiment=[a]",
        "experiment.task=train",
    ),
    *(
        "experiment.task.type=[a]",
        "experiment.task.type={}",
        "experiment.task.type=null",
        "experiment.task.type=3",
    ),
    *(
        "experiment.task.type.x=1",
        "experiment.exp_name.x=1",
        "experiment.runner=3",
        "experiment.runner.nnodes=[1]",
    ),
    *(
        "experiment.runner.0=1",
        "experiment.envs=[A]",
        "experiment.envs.1BAD=x",
        "experiment.envs.A.B=1",
        "defaults=[a]",
    ),
    *(
        "experiment.exp_dir=???",
        "experiment.exp_dir=${experiment.exp_dir}",
        "experiment.exp_dir='a\0b'",
        "defaults=null",
    ),
    *(
        "experiment.runner.hostfile=.",
        "experiment.runner.hostfile=/dev/null/x",
        "experiment.runner.hostfile='\0'",
    ),
    *(
        "experiment.runner.hostfile=[a]",
        "experiment.runner.include=[1]",
        "experiment.runner.host_paths={1: 2}",
    ),
    *(
        "experiment.task.entrypoint=..",
        "experiment.task.entrypoint=''",
        "experiment.task.entrypoint='a\0.py'",
    ),
    *(
        "experiment.task.entrypoint=a..b",
        "experiment.task.entrypoint=.py",
        "experiment.task.entrypoint=/",
        "-x",
    ),
    *(
        "output=3",
        "follow=x",
        "output={a: 1}",
        "--cfg",
        "--cfg=x",
        "--cfg=job",
        "--resolve",
        "--info",
        "--info=x",
    ),
    *(
        "--package=x",
        "--config-dir=absent",
        "--config-dir",
        "--run",
        "--config-name",
        "--config-name=",
        "--nothing",
    ),
    *(
        "--config-path",
        "--config-path=",
        "--config-path=pkg://x",
        "--config-name=../x",
        "--config-name=/",
        "--config-name=.",
    ),
    *(
        "--config-name=a\0b",
        "--config-path=a\0b",
        "--config-name=config.yaml",
        "--config-name=train",
        "--config-name=[a]",
    ),
    *(
        "-m",
        "--multirun",
        "hydra.mode=MULTIRUN",
        "a=1,2",
        "experiment.exp_dir=a,b",
        "-cn",
        "-cp",
        "-cd=x",
        "--help",
    ),
    *("--experimental-rerun=absent", "--shell-completion", "--hydra-help", "-sc", "query=x", "install=x"),
]
HOST_LINES = [
    *(
        "",
        "#",
        "a",
        "a slots",
        "a slots=",
        "a slots=x",
        "a slots=0",
        "a slots=-1",
        "a slots=1.5",
        "a slots=" + "9" * 5000,
    ),
    *(
        "a slots=4 slots=4",
        "a slots=4 type=",
        "a slots=4 type=nothing",
        "a:4",
        "a 4",
        "slots=4",
        "a slots = 4",
        "=",
        "\0",
    ),
    *(
        "a slots=4 x=y",
        "a, b",
        "a;b slots=1",
        "user@a slots=1",
        "[::1] slots=1",
        "::1 slots=1",
        "a slots=٣",
        "é slots=1",
    ),
    *(
        "localhost slots=4 type=cpu",
        "-a slots=1",
        "a- slots=1",
        "a slots=4\\",
        "\ufeffa slots=1",
        "a\tslots=1",
        "\x85",
        "\u2028",
    ),
    *(
        "[group]",
        "a: {slots: 4}",
        "- a",
        "a ansible_host=b",
        "node[1-4] slots=8",
        "a max_slots=3",
        "*",
        "a/b slots=1",
    ),
]

Slip = Callable[[list[str]], list[str]]


@st.composite
def lines_of(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Lines of YAML after one slip."""
    kind = draw(
        st.sampled_from([*_LINE_SLIPS, "value", "value", "value", "key", "key", "entry", "insert", "text"])
    )
    if not lines:
        return [draw(st.sampled_from(HEADERS))]
    where = draw(st.integers(0, len(lines) - 1))
    line = lines[where]
    if kind in _LINE_SLIPS:
        return [*lines[:where], *_LINE_SLIPS[kind](line), *lines[where + 1 :]]
    key, colon, value = line.partition(":")
    indent = re.match(r"[\s-]*", key)[0]  # type: ignore[index]
    if kind == "value":
        changed = (
            [f"{key}: {draw(st.sampled_from(VALUES))}"]
            if colon
            else [f"{indent}{draw(st.sampled_from(VALUES))}"]
        )
    elif kind == "key":
        changed = [f"{indent}{draw(st.sampled_from(KEYS))}:{value}"]
    elif kind == "text":
        changed = [f"{key}: {draw(st.text(max_size=12))}"]
    elif kind == "entry":
        return _with_entry(draw, lines)
    else:
        place = draw(st.sampled_from(KEYS))
        changed = [line, f"{re.match(' *', key)[0]}{place}: {draw(st.sampled_from(VALUES))}"]  # type: ignore[index]
    return [*lines[:where], *changed, *lines[where + 1 :]]


def _with_entry(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Change the defaults list, or put one there."""
    start = next((index for index, line in enumerate(lines) if line.startswith("defaults:")), None)
    if draw(st.integers(0, 4)) == 0:
        rest = [line for line in lines if not line.startswith(("defaults:", "  - "))]
        return [f"defaults: {draw(st.sampled_from(DEFAULTS))}", *rest]
    entry = f"  - {draw(st.sampled_from(ENTRIES))}"
    if start is None:
        return ["defaults:", entry, *lines]
    at = start + draw(st.integers(1, 3))
    return [*lines[:at], entry, *lines[at + draw(st.integers(0, 1)) :]]


_LINE_SLIPS: dict[str, Callable[[str], list[str]]] = {
    "outdent": lambda line: [line[1:] if line.startswith(" ") else line],
    "indent": lambda line: [f" {line}"],
    "tab": lambda line: [f"\t{line.lstrip()}"],
    "tab inside": lambda line: [line.replace(": ", ":\t", 1)],
    "no space": lambda line: [line.replace(": ", ":", 1)],
    "no colon": lambda line: [line.replace(":", "", 1)],
    "two colons": lambda line: [line.replace(":", "::", 1)],
    "dash": lambda line: [f"- {line}"],
    "no dash": lambda line: [line.replace("- ", "", 1)],
    "twice": lambda line: [line, line],
    "away": lambda line: [],
    "comment": lambda line: [f"#{line}"],
    "comma": lambda line: [f"{line},"],
    "equals": lambda line: [line.replace(":", " =", 1)],
    "carriage return": lambda line: [f"{line}\r"],
    "nul": lambda line: [f"{line}\0"],
    "wide space": lambda line: [line.replace(" ", "\u00a0")],
    "quote": lambda line: [f"{line}'"],
    "bracket": lambda line: [
        line.replace("]", "").replace("}", "") if set(line) & set("]}") else f"{line} ]"
    ],
    "half": lambda line: [line[: len(line) // 2]],
    "merge": lambda line: [f"{line} &m", "<<: *m"],
    "bomb": lambda line: [BOMB, line],
    "anchor": lambda line: [line.replace(": ", ": &a ", 1), "again: *a"],
}


def _encoded(draw: st.DrawFn, lines: list[str]) -> bytes:
    ending = draw(st.sampled_from(["\n"] * 8 + ["\r\n", "\r", "\u2028"]))
    encoding = draw(st.sampled_from(["utf-8"] * 10 + ["utf-16", "latin-1", "utf-8-sig", "cp1251"]))
    return (ending.join(lines) + ending).encode(
        encoding, errors="surrogatepass" if "8" in encoding else "replace"
    )


@st.composite
def yaml_slips(draw: st.DrawFn, of_task: bool) -> Project:
    """A project whose experiment file, or whose task file, has one to three slips."""
    project = draw(st.sampled_from(PROJECTS))
    names = [name for name in project.files if (name != CONFIG) == of_task and name != HOSTS]
    name = draw(st.sampled_from(names))
    choice = draw(st.integers(0, 19))
    if choice == 0:
        return project.with_file(name, draw(st.sampled_from(WHOLE)))
    if choice == 1:
        return project.with_file(
            name, draw(st.sampled_from(["folder", "absent", "unreadable", "loop", "fifo"]))
        )
    lines = project.text(name).splitlines()
    if choice == 2:
        lines = [draw(st.sampled_from(HEADERS)), *lines]
    elif choice == 3:
        lines = [*lines, f"hydra: {draw(st.sampled_from(HYDRA))}"]
    else:
        for _ in range(draw(st.integers(1, 3))):
            lines = draw(lines_of(lines))
    return project.with_file(name, _encoded(draw, lines))


@st.composite
def hostfile_slips(draw: st.DrawFn) -> Project:
    """A project with a hostfile that has slips."""
    project = draw(st.sampled_from([project for project in PROJECTS if HOSTS in project.files]))
    choice = draw(st.integers(0, 9))
    if choice == 0:
        return project.with_file(
            HOSTS, draw(st.sampled_from(["folder", "absent", "unreadable", "loop", *WHOLE]))
        )
    lines = project.text(HOSTS).splitlines()
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.integers(0, len(lines)))
        line = draw(st.one_of(st.sampled_from(HOST_LINES), st.text(max_size=10)))
        lines = [*lines[:where], line, *lines[where + draw(st.integers(0, 1)) :]]
    return project.with_file(HOSTS, _encoded(draw, lines))


@st.composite
def word_slips(draw: st.DrawFn) -> Project:
    """A project with overrides, or flags, that have slips."""
    project = draw(st.sampled_from(PROJECTS))
    keys = [
        "experiment",
        "experiment.task.type",
        "experiment.runner.nnodes",
        "experiment.exp_dir",
        "train",
        "a.b",
    ]
    made = st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "+", "++", "~"]),
        st.sampled_from([*keys, *KEYS]),
        st.sampled_from(VALUES),
    )
    words = draw(st.lists(st.one_of(st.sampled_from(WORDS), made), min_size=1, max_size=2))
    return project.with_words([word.replace("\0", draw(st.sampled_from(["", "\0"]))) for word in words])
