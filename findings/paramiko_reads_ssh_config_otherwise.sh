#!/usr/bin/env bash
# paramiko 5.1.0, OpenSSH 9.2p1, Python 3.12; seen on 2026-11-29.
#
# `paramiko.SSHConfig` reads these valid configurations without an error, but not as `ssh -G` does:
# - of ProxyCommand and ProxyJump, OpenSSH takes the one that comes first in the file; paramiko returns both, so a
# program that looks for ProxyJump first goes another way than `ssh`
# - a comment at the end of a line is part of the value
# - `[ab]` in a Host pattern is a set of characters; OpenSSH knows only `*`, `?` and `!`
# - `%n` in ProxyCommand stays as it is, and `%%` does not become `%`
# - `Match host=NAME` is the one that raises: "Missing parameter to Match"
#
# Output seen (ssh on the left, paramiko on the right):
#   command, then jump: nc h 1 | nc h 1 and jump
#   jump, then command: jump | nc h 1 and jump
#   comment: alice | alice # me
#   brackets: no match | match
#   tokens: name-is-a-100% | name-is-%n-100%%
#   Match host=a: 2200 | ConfigParseError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet paramiko==5.1.0
cat > "$folder/show.py" <<'PYTHON'
import io
import shlex
import subprocess
import sys
from pathlib import Path

import paramiko

folder = Path(sys.argv[1])


def openssh(text: str) -> dict[str, str]:
    path = folder / "config"
    path.write_text(text)
    done = subprocess.run(["ssh", "-F", str(path), "-G", "a"], capture_output=True, text=True, check=True)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return {name: value for name, value in found.items() if value != "none"}


def read(text: str) -> dict[str, str]:
    config = paramiko.SSHConfig()
    config.parse(io.StringIO(text))
    return config.lookup("a")


def way(found: dict[str, str]) -> str:
    return " and ".join(found[name] for name in ("proxycommand", "proxyjump") if name in found)


def show(name: str, *answers: str) -> None:
    print(f"{name}: {' | '.join(answers)}")


command, jump = "Host a\n  ProxyCommand nc h 1\n", "Host a\n  ProxyJump jump\n"
show("command, then jump", *(way(reader(command + jump)) for reader in (openssh, read)))
show("jump, then command", *(way(reader(jump + command)) for reader in (openssh, read)))
show("comment", *(reader("Host a\n  User alice # me\n")["user"] for reader in (openssh, read)))
brackets = "Host [ab]\n  User bob\n"
show("brackets", *("match" if reader(brackets).get("user") == "bob" else "no match" for reader in (openssh, read)))

# `ssh -G` prints a command with its tokens, so OpenSSH runs it: the command leaves a file whose name shows them.
tokens = f"Host a\n  HostName b\n  ProxyCommand touch {shlex.quote(str(folder))}/name-is-%n-100%%\n"
(folder / "config").write_text(tokens)
subprocess.run(["ssh", "-F", str(folder / "config"), "-o", "BatchMode=yes", "a"], capture_output=True)
(ran,) = (path.name for path in folder.glob("name-is-*"))
show("tokens", ran, Path(read(tokens)["proxycommand"].split()[1]).name)

matching = "Match host=a\n  Port 2200\n"
try:
    answer = read(matching)["port"]
except paramiko.ConfigParseError as error:
    answer = type(error).__name__
show("Match host=a", openssh(matching)["port"], answer)
PYTHON
mkdir "$folder/files"
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/files")
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
