"""Runs a Dockerfile's commands in order inside a folder that holds a Linux root, where no engine can build it.

    debootstrap --variant=minbase --include=python3.11,python3.11-venv,python3.11-dev,ca-certificates bookworm ROOT
    sudo python tools/check_dockerfile.py --root ROOT --build_args '{VARIANT: cpu}'

It knows ARG, ENV, RUN, COPY (of tracked files, with `--chown`), WORKDIR and USER; FROM and CMD are left out, and any
other instruction is an error. Each RUN is a `sh -c` under `chroot`, as its user; the first that fails ends it with its
exit code.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import CLI

IGNORED = ("FROM", "CMD")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(instruction, rest) of each, lines that end in a backslash joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def copy_tracked(arguments: str, root: Path, workdir: str, context: Path) -> list[str]:
    """Copies what git knows of a source (or several) into the root; gives the command that sets the owner."""
    words = shlex.split(arguments)
    owner = next((word.split("=")[1] for word in words if word.startswith("--chown=")), "root:root")
    *sources, destination = [word for word in words if not word.startswith("--")]
    target = root / (destination if destination.startswith("/") else f"{workdir}/{destination}").lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    whole = len(sources) == 1 and (context / sources[0]).is_dir()
    base = context / sources[0] if whole else context
    listed = subprocess.run(["git", "ls-files", *sources], cwd=context, check=True, capture_output=True, text=True)
    names = [str((context / name).relative_to(base)) for name in listed.stdout.splitlines()]
    packed = subprocess.run(["tar", "--create", "-C", base, *names], check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "-C", target, "--no-same-owner"], input=packed, check=True)
    inside = "/" + str(target.relative_to(root))
    return ["chown", owner, *(f"{inside}/{name}" for name in names)]


def main(root: str, build_args: dict[str, str] | None = None, dockerfile: str = "Dockerfile", start: int = 1) -> None:
    """Runs the commands.

    Args:
        root: Folder of the Linux root.
        build_args: Values of the Dockerfile's ARGs.
        dockerfile: What to run; its folder is the build context.
        start: Number of the first instruction to carry out; ARG, ENV, WORKDIR and USER before it count all the same.
    """
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
    user, workdir, folder = "root", "/", Path(root)
    for number, (name, rest) in enumerate(instructions(Path(dockerfile).read_text(encoding="utf-8")), start=1):
        print(f"[{number}] {name} {rest[:160]}", flush=True)
        started = time.perf_counter()
        if name == "ARG":
            key, _, default = rest.partition("=")
            variables[key] = (build_args or {}).get(key, default)
        elif name == "ENV":
            for key, _, value in (word.partition("=") for word in shlex.split(rest)):
                variables[key] = value.replace("$PATH", variables["PATH"])
        elif name == "USER":
            user = rest
        elif name == "WORKDIR":
            workdir = rest
            (folder / workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name in ("RUN", "COPY"):
            if number < start:
                continue
            command = ["sh", "-c", f"cd {workdir} && {rest}"]
            if name == "COPY":
                command = copy_tracked(rest, folder, workdir, Path(dockerfile).resolve().parent)
            assignments = [f"{key}={value}" for key, value in variables.items()]
            here = ["chroot", f"--userspec={user if name == 'RUN' else 'root'}", root, "/usr/bin/env", "-i"]
            status = subprocess.run([*here, *assignments, *command], check=False).returncode
            print(f"    {'done' if status == 0 else f'FAILED with {status}'}, {time.perf_counter() - started:.0f} s")
            if status:
                sys.exit(status)
        elif name not in IGNORED:
            sys.exit(f"check_dockerfile: {name} is not understood")


if __name__ == "__main__":
    CLI(main, as_positional=False)
