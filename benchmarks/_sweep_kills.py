"""Workers of a sweep, and now and then the sweep itself, are killed (SIGKILL) at random moments.

The sweep gives the job of a dead worker to another; after its own death the same command is begun again. What it leaves
in the end is compared byte for byte with what an unbroken sweep leaves.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import Row

FILE = """
algorithms = ["trpo", "d4pg"]
tasks = ["realworld-cartpole"]
seeds = 3
iterations = 60
checkpoint-every = 3
horizon = 100

[options]
tasks = 2
episodes = 1
hidden = [8]

[algorithm.d4pg] # its seeds are trained in one compiled program
preset = "fast"
critic-hidden = [8]
capacity = 500
batch = 8
warm-up = 8
atoms = 7
"""
PATIENCE = 1800  # seconds for a sweep
HEAD = 0.1  # share of the kills that hit the sweep itself
COMPARED = ("config.json", "metrics.jsonl")


def start(out: Path) -> subprocess.Popen[bytes]:
    """The sweep's process."""
    command = [sys.executable, "-m", "safemeta", "sweep", "sweep.toml", "--out", str(out), "--workers", "2", "--quiet"]
    return subprocess.Popen(command, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers(parent: int) -> list[int]:
    """The processes below another that are at work on a job of Ray's."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                below.setdefault(int((entry / "stat").read_text().rpartition(") ")[2].split()[1]), []).append(
                    int(entry.name)
                )
            except (OSError, IndexError):
                continue  # it has just ended
    waiting, found = [parent], []
    while waiting:
        for child in below.get(waiting.pop(), []):
            waiting.append(child)
            try:
                if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::work"):
                    found.append(child)
            except OSError:
                continue
    return found


def logged(out: Path) -> int:
    """Iterations that all runs have logged."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/metrics.jsonl"))


def kill_one(process: subprocess.Popen[bytes], out: Path, draw: random.Random) -> bool:
    """Wait for a random moment and kill; whether there was anything to kill."""
    limit = time.monotonic() + PATIENCE
    while not workers(process.pid):
        if process.poll() is not None or time.monotonic() > limit:
            return False
        time.sleep(0.05)
    # While a worker starts, within an iteration, while checkpoints are written: after so many iterations, or so long.
    goal, latest = logged(out) + draw.randint(0, 12), time.monotonic() + draw.uniform(0.5, 30.0)
    while logged(out) < goal and time.monotonic() < latest and process.poll() is None:
        time.sleep(0.01)
    time.sleep(draw.random() * 0.1)
    victims = [process.pid] if draw.random() < HEAD else workers(process.pid)
    if not victims or process.poll() is not None:
        return False
    try:
        os.kill(draw.choice(victims), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def content(folder: Path) -> dict[str, bytes]:
    """What training left in a run's folder, but for clock readings."""
    names = [
        *COMPARED,
        *(f"checkpoints/{path.name}" for path in sorted((folder / "checkpoints").glob("*.safetensors"))),
    ]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def all_sweep_kills(kills: int, seed: int) -> list[Row]:
    """A row of how many kills a sweep survived, beside how many there were."""
    draw, made, same, begun = random.Random(seed), 0, True, 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        (Path(scratch) / "sweep.toml").write_text(FILE)
        if start(whole).wait(PATIENCE) != 0:
            raise SystemExit("the unbroken sweep failed")
        runs = sorted(path.parent.name for path in whole.glob("*/config.json"))
        while made < kills and same:
            begun += 1
            broken, process, left = Path(scratch) / f"broken-{begun}", None, min(kills - made, 12)
            while process is None or process.returncode != 0:
                process = start(broken)
                while left > 0 and kill_one(process, broken, draw):
                    made, left = made + 1, left - 1
                process.wait(PATIENCE)
            same = all(content(whole / run) == content(broken / run) for run in runs)
            print(f"sweep: {made} kills, {'the same' if same else 'NOT THE SAME'}", file=sys.stderr)
            if not same:
                different = [run for run in runs if content(whole / run) != content(broken / run)]
                print(json.dumps(different), file=sys.stderr)
    case = f"kills, sweep of {len(runs)} runs on 2 workers"
    return [Row(case, made if same else 0, "survived", "kills", made, float(same))]
