"""The command line: a table of commands, and the exit codes: 0 done, 1 failed with one clear line, 2 wrong usage."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from retinaconf import __doc__ as purpose
from retinaconf import __version__
from retinaconf.commands.options import parse
from retinaconf.errors import InputError, Interrupted, UsageError, extras_needed_by, one_line, reason

# Each is the function of this name in the module of this name in `commands`.
COMMANDS = {
    "demo": "demo",
    "train": "train",
    "evaluate": "evaluate",
    "predict": "predict",
    "tune": "tune",
    "diagnose": "diagnose",
    "calibrate": "calibrate",
    "compare": "compare",
    "retrofit": "retrofit",
    "check": "check",
    "export": "export",
    "import": "import_",
    "paper": "paper",
}
PARSE_THEMSELVES = ("train", "paper")  # their defaults depend on the recipe, which is one of their words


def load_command(name: str) -> Callable[..., None]:
    """The function of a command."""
    command: Callable[..., None] = getattr(import_module(f"retinaconf.commands.{COMMANDS[name]}"), COMMANDS[name])
    return command


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit. Without `args` the process is the command's own, and ends at once."""
    if args is not None:
        sys.exit(_run(list(args)))
    code = _run(sys.argv[1:])
    # Python takes most of a second to take torch apart, which nobody waits for.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(args: list[str]) -> int:
    if isinstance(sys.stdout, TextIOWrapper):  # names of files need not be text that the terminal can encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with extras_needed_by(args[0] if args else "retinaconf"):
            _dispatch(args)
        sys.stdout.flush()
    except UsageError as error:
        print(f"retinaconf: {error}", file=sys.stderr)
        return 2
    except (InputError, Interrupted) as error:
        print(f"retinaconf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("retinaconf: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes nowhere
        return 1
    except OSError as error:  # a disk that is full, a folder that went away
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"retinaconf: {one_line(f'{where}{reason(error)}')}", file=sys.stderr)
        return 1
    return 0


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    if args[0] == "--version":
        print(f"retinaconf {__version__}")
        return
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}; there are {', '.join(COMMANDS)}")
    command = load_command(name)
    if name in PARSE_THEMSELVES:
        command(rest)
        return

    # Only parsed first: what the command writes to stderr is no complaint about its options.
    @functools.wraps(command)
    def bound(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    parse(bound, rest, name)()


def _usage() -> str:
    lines = ["usage: retinaconf COMMAND ...", "", (purpose or "").splitlines()[0], ""]
    for name in COMMANDS:
        lines.append(f"  {name:<10} {(load_command(name).__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`retinaconf COMMAND --help` lists its options."])
