"""Render one readable bash script per host from the plan alone.

Values never become shell: the supervisor reads argv and environment from `plan.json`. The script shows them
in comments for the reader, and contains only paths of ours (quoted) and the user's own shell lines.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale.values import LaunchPlan, NodeCommand


def scripts(plan: LaunchPlan) -> dict[Path, str]:
    """Return the run and stop script of every host, with paths as they are on that host."""
    run_dir = RunDir(Path(plan.exp_dir))
    rendered: dict[Path, str] = {}
    for host in plan.hosts:
        there = plan.on_host(host.name)
        node = there.node(host.rank)
        rendered[run_dir.run_script(host)] = run_script(there, node)
        rendered[run_dir.stop_script(host)] = stop_script(there, node)
    return rendered


def run_script(plan: LaunchPlan, node: NodeCommand) -> str:
    """Return the script that runs a host's share of the job in the foreground, under its supervisor."""
    lines = [
        "#!/usr/bin/env bash",
        f"# {one_line(plan.name)}: host {node.host.rank} of {len(plan.nodes)}, {node.host.name}, "
        f"{node.host.slots} of {plan.world_size} {'slots' if node.services else 'ranks'} ({plan.layout}) "
        f"on {node.host.platform}",
        f"# run {plan.run_id}",
        "#",
        "# The supervisor starts this command (it reads plan.json, not these lines):",
        *[f"#   {name}={one_line(value)}" for name, value in node.env.items()],
        *[f"#   {line}" for line in command_lines(node.command())],
        *_service_lines(node),
        "set -eo pipefail",
        f"cd {shlex.quote(node.cwd)}",
    ]
    if plan.before_start:
        lines += ["", "# experiment.cmds.before_start", plan.before_start.rstrip("\n"), ""]
    # Last, because the user's lines may set PYTHONPATH as well.
    lines += node_lines(plan, node, "supervise")
    return "\n".join(lines) + "\n"


def _service_lines(node: NodeCommand) -> list[str]:
    """Return comment lines that show the services that the host's agent starts."""
    lines: list[str] = []
    for service in node.services:
        devices = f", devices {', '.join(map(str, service.devices))}" if service.devices else ""
        lines += ["#", f"# service {service.name}{devices}"]
        lines += [f"#   {name}={one_line(value)}" for name, value in service.env.items()]
        lines += [f"#   {line}" for line in command_lines(service.argv)]
    return lines


def stop_script(plan: LaunchPlan, node: NodeCommand) -> str:
    """Return the script that ends every process of this run on a host, for use by hand or by another tool."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Ends run {plan.run_id} on host {node.host.rank}, {node.host.name}, and nothing else;"
        " then runs experiment.cmds.after_stop.",
        *node_lines(plan, node, "stop"),
    ]
    return "\n".join(lines) + "\n"


def command_lines(argv: tuple[str, ...]) -> list[str]:
    """Return argv as readable lines: one option with its values per line, quoted so that it can be pasted."""
    lines: list[str] = []
    for word in argv:
        quoted = one_line(word)
        if not lines or word.startswith("--"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return lines


def one_line(word: str) -> str:
    """Quote a word so that it stays on its line whatever it contains: a newline would end the comment."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_ansi_c, word)) + "'"


def _ansi_c(char: str) -> str:
    if char in "\\'":
        return "\\" + char
    if char.isprintable():
        return char
    named = {"\n": "\\n", "\t": "\\t"}
    return named.get(char) or "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape"))


def node_lines(plan: LaunchPlan, node: NodeCommand, verb: str) -> list[str]:
    """Return the shell lines that replace a script, or a subshell of one, by a node command of this plan."""
    words = [plan.python, "-m", "flagscale.node", verb, plan.exp_dir, str(node.host.rank), plan.run_id]
    return [*pythonpath_lines(plan), f"exec {shlex.join(words)}"]


def pythonpath_lines(plan: LaunchPlan) -> list[str]:
    """Return the shell lines that let Python find the clone of a plan; none if FlagScale is installed."""
    if not plan.source_root:
        return []
    roots = shlex.quote(import_path(plan.source_root))
    return [f"export PYTHONPATH={roots}${{PYTHONPATH:+:$PYTHONPATH}}"]
