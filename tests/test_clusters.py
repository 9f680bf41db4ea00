"""The commands of docs/clusters.md, made smaller: two processes on a CPU, and SLURM's programs by stand-ins."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from retinaconf.config import Config
from retinaconf.recipes import RECIPES
from retinaconf.training.schedule import peak_learning_rate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/clusters.md").read_text()
SCRIPT = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0]


def torchruns() -> list[list[str]]:
    """The words of each torchrun command of the page's shell blocks."""
    texts = [text.replace("\\\n", " ") for text in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)]
    return [shlex.split(line) for text in texts for line in text.splitlines()]


def smaller(words: Sequence[str], data: Path, run: Path, flags: Sequence[str]) -> list[str]:
    """The command for two processes, a tiny data set and two steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = "--nnodes" in words
    changed = {"--nnodes": "2", "--nproc-per-node": "1" if machines else "2", "--rdzv-endpoint": f"127.0.0.1:{port}"}
    changed |= {"--data": str(data), "--out": str(run), "--data.workers": "1", "--data.batch-size": "4"}
    found = [changed.get(before, word) for before, word in zip(["", *words], words)]
    assert (found[0], found.count("-m"), "retinaconf" in found) == ("torchrun", 1, True)
    here = [] if machines else ["--master-port", str(port)]
    tiny = [*flags, "--data.workers", "1", "--precision", "32", "--device", "cpu", "--max-steps", "2"]
    return [sys.executable, "-m", "torch.distributed.run", *here, *found[1:], *tiny]


@pytest.mark.slow
@pytest.mark.parametrize("command", [0, 1, 2], ids=["one machine", "several machines", "dry run"])
def test_the_torchrun_commands_train_on_two_processes(
    tiny_data: Path, tiny_flags: list[str], tmp_path: Path, command: int
):
    """Of several machines, each is a torchrun with one process, in what SLURM tells a task of its own."""
    words = smaller(torchruns()[command], tiny_data, tmp_path / "run", tiny_flags)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "coco"}
    environment |= slurm | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"} if "--nnodes" in words else {}
    started = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2 if "--nnodes" in words else 1)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "".join(said)[-3000:]
    if "--dry-run" in words:
        assert "effective batch: 4 images = 2 processes x 1 pass x 2" in said[0]
        assert not (tmp_path / "run").exists()
        return
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in steps] == [("train", 2), ("val", 2)]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2


# SLURM's programs. A job step runs until it gets SIGTERM, or ends at once with $ENDS.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >> calls; [ "$1" = show ] && printf "node7\\nnode8\\n"; true',
    "srun": 'echo "srun $*" >> calls; [ -n "$ENDS" ] && exit "$ENDS"\n'
    "trap 'sleep 0.3; echo saved >> calls; exit 1' TERM\necho $$ > step; while true; do sleep 0.05; done",
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"',
}


def run_script(folder: Path, ends: str = "") -> tuple[int, list[str]]:
    """Exit code of the page's script, and what it has called; unless it `ends` by itself it gets SIGUSR1."""
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "job.sh").write_text(SCRIPT)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]", "ENDS": ends}
    environment = os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"}
    script = subprocess.Popen(["bash", "job.sh"], cwd=folder, env=environment)
    try:
        while not ends and not (folder / "step").exists():
            assert script.poll() is None
            time.sleep(0.02)
        if not ends:
            time.sleep(0.2)
            script.send_signal(signal.SIGUSR1)
        return script.wait(timeout=60), (folder / "calls").read_text().splitlines()
    finally:
        script.kill()


def test_the_slurm_script_is_one():
    subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=True)
    assert SCRIPT.startswith("#!/bin/bash\n#SBATCH ")


def test_a_job_whose_time_is_over_saves_the_run_and_is_queued_again(tmp_path: Path):
    code, calls = run_script(tmp_path)
    assert code != 0
    assert calls[0] == "scontrol show hostnames node[7-8]"
    assert "srun torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id 7 " in calls[1]
    assert "--rdzv-endpoint node7:29500 -m retinaconf train conf-r50-1x" in calls[1]
    assert calls[1].endswith(" --resume")
    assert calls[2:] == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


@pytest.mark.parametrize("code", ["0", "1"])
def test_a_job_that_ends_by_itself_is_not_queued_again(tmp_path: Path, code: str):
    found, calls = run_script(tmp_path, ends=code)
    assert found == int(code)
    assert [call for call in calls if "requeue" in call] == []


def test_the_training_command_of_the_script_is_that_of_the_page():
    words = shlex.split(re.findall(r"-m retinaconf (train .*?) &$", SCRIPT.replace("\\\n", " "), re.MULTILINE)[0])
    of_page = torchruns()[1]
    assert words == [*of_page[of_page.index("retinaconf") + 1 :], "--resume"]


def test_the_table_of_coco_follows_from_the_recipe():
    rows = re.findall(r"^\| (\d+) \| (\d+)[^|]*\| (\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "8", "32"]
    recipe: Config = RECIPES["conf-r50-1x"]
    for gpus, batch, each, *rest in rows:
        config = recipe.changed(**{"data.batch_size": int(batch)})
        an_epoch = -(-118_287 // int(batch))
        assert int(batch) == int(gpus) * int(each)
        falls = " and ".join(f"{epoch * an_epoch:,}" for epoch in config.schedule.milestones)
        numbers = [f"{an_epoch:,}", f"{an_epoch * config.schedule.epochs:,}", f"{peak_learning_rate(config):g}", falls]
        assert [cell.strip() for cell in rest] == numbers
