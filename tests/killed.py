"""Kills a run at random moments, continues it by the same command, and compares it with one that was left alone.

    python tests/killed.py --config configs/tiny.py --kills 10
    python tests/killed.py --config configs/tiny.py --config.method=FILE.py:CLASS --config.optim.steps=400

Half of the kills come at any moment, while a run starts, restores, trains or saves; the others while it trains. Prints one JSON
line: `kills`, and the digests of all parameters and the target, `whole` and `killed`. The exit code is 1 where these differ.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ijepa_jax.train import metrics  # noqa: E402 - found by the line above, wherever this is started from


def start(command: list[str], workdir: pathlib.Path, said: int = subprocess.DEVNULL) -> subprocess.Popen:
    """The run of a workdir, as a process; `said`: where what it says goes."""
    command = [sys.executable, str(ROOT / "launch.py"), *command, f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True)


def finish(command: list[str], workdir: pathlib.Path) -> str:
    """Lets a run come to its end; returns the digest of what it trained."""
    process = start(command, workdir, subprocess.PIPE)
    said, _ = process.communicate(timeout=1200)
    if process.returncode:
        raise SystemExit(f"the run in {workdir} failed:\n{said[-3000:]}")
    return json.loads((workdir / "report" / "report.json").read_text())["params_digest"]


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    """Waits until a run has logged a step, or has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and max((line["step"] for line in metrics.read(workdir) if "loss" in line), default=0) < step:
        if time.monotonic() > deadline:
            raise SystemExit(f"no step {step} in {workdir}")
        time.sleep(0.02)


def compare(command: list[str], kills: int, folder: pathlib.Path) -> dict:
    """Runs a command twice, and kills one of them so often, unless it ends before."""
    found = {"whole": finish(command, folder / "whole")}
    rng, done = random.Random(0), 0
    steps = json.loads((folder / "whole" / "report" / "report.json").read_text())["steps"]
    while not (folder / "killed" / "report" / "report.json").exists() and done < kills:
        process = start(command, folder / "killed")
        if done % 2:
            time.sleep(10 * rng.random())
        else:
            wait_for_step(folder / "killed", steps * (done + 1) // (kills + 2), process)
            time.sleep(rng.random() * 0.2)
        process.kill()
        process.wait(timeout=120)
        done += 1
    return {"kills": done, **found, "killed": finish(command, folder / "killed")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a configuration file; settings follow as --config.KEY=VALUE")
    parser.add_argument("--kills", type=int, default=10)
    options, settings = parser.parse_known_args()
    if unknown := [setting for setting in settings if not setting.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    with tempfile.TemporaryDirectory() as folder:
        found = compare(["pretrain", "--config", options.config, *settings], options.kills, pathlib.Path(folder))
    print(json.dumps(found))
    return int(found["whole"] != found["killed"])


if __name__ == "__main__":
    sys.exit(main())
