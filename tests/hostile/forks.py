"""Commands run one after the other in forked children of a process that has imported everything once.

`python forks.py` is that process. It reads a line of JSON, `{"words": [...], "folder": ...}`, runs the command
`retinaconf WORDS` in a child, and answers with a line: `{"code", "out", "err", "seconds", "megabytes"}`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

SECONDS = 10  # of the CPU
PATIENCE = 6 * SECONDS  # on the clock: other programs may be at work
ADDRESSES = 6 << 30  # bytes of address space beyond what the imports take: a bomb must not stop the machine
SHOWN = 4000  # characters kept of what a command prints
TIMEOUT = -signal.SIGKILL


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    seconds: float  # of the CPU
    megabytes: int  # that it took beyond the imports


class Forks:
    """The process that forks, as a client sees it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
        words = [sys.executable, __file__]
        self._server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def run(self, *words: Any, folder: Path) -> Ended:
        """Run a command; `folder` is its working directory, and `folder/tmp` has its temporary files."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {"words": [str(word) for word in words], "folder": str(folder)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def _serve() -> None:
    import PIL.Image

    from retinaconf.cli import COMMANDS, load_command, main

    for name in COMMANDS:
        load_command(name)
    for module in ("api", "training.run", "inference.predict", "inference.tune", "interop.import_weights"):
        import_module(f"retinaconf.{module}")
    for module in ("diagnosis.report.page", "diagnosis.report.figures", "evaluation.score_map_file", "data.check"):
        import_module(f"retinaconf.{module}")
    PIL.Image.init()  # what is imported at the first image or the first option, too
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        main(["check", "--data", "nowhere"])
    gc.collect()
    gc.freeze()  # else each child copies the pages of all objects as it collects garbage
    replies = os.fdopen(os.dup(1), "w")
    idle = _megabytes_of(lambda: None)
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(_run(request["words"], Path(request["folder"]), idle)._asdict()) + "\n")
        replies.flush()


def _run(words: list[str], folder: Path, idle: int) -> Ended:
    out, err = folder / ".out", folder / ".err"
    began = time.monotonic()
    child = os.fork()
    if not child:
        _become(words, folder, out, err)
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    texts = [file.read_bytes().decode("utf-8", "backslashreplace")[-SHOWN:] for file in (out, err)]
    out.unlink()
    err.unlink()
    seconds = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), *texts, round(seconds, 2), (used.ru_maxrss >> 10) - idle)


def _become(words: list[str], folder: Path, out: Path, err: Path) -> None:
    """The child: it becomes the command and never returns."""
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESSES, taken + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder / "tmp")
    import tempfile

    import torch

    from retinaconf.cli import main

    tempfile.tempdir = None
    torch.set_num_threads(1)
    code = 70
    try:
        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _megabytes_of(work: Any) -> int:
    """Peak memory of a child that does `work`."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    _, _, used = os.wait4(child, 0)
    return used.ru_maxrss >> 10


if __name__ == "__main__":
    _serve()
