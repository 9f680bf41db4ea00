"""Nothing connects to a network that was not asked for one. tests/test_light_core.py: the same without torch."""

import json
import socket
import time

import pytest

import retinaconf
from retinaconf.cli import COMMANDS


@pytest.fixture
def attempts(monkeypatch):
    """The connections that were tried, each of which fails."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return tried


@pytest.mark.ci
def test_commands_on_local_files(attempts, trained, tiny_data, tiny_flags, run_cli, tmp_path):
    cpu = ("--device", "cpu")
    commands = [
        *([name, "--help"] for name in COMMANDS),
        ("check", "--data", tiny_data),
        ("evaluate", trained.run, "--data", trained.data, "--detections", tmp_path / "dt.json", *cpu),
        ("diagnose", trained.run, "--data", trained.data, "--report", tmp_path / "report.html", *cpu),
        ("diagnose", "--detections", tmp_path / "dt.json", "--ground-truth", trained.data / "val.json"),
        ("predict", trained.run, trained.data / "images/val-1.png", "--out", tmp_path / "found", *cpu),
        ("train", "conf-lite0", "--data", tiny_data, "--out", tmp_path / "run", *tiny_flags, "--max-steps", 1, *cpu),
    ]
    for words in commands:
        result = run_cli(*words)
        assert result.code == 0, (words, result.err)
    assert attempts == []
    assert json.loads((tmp_path / "found/detections.json").read_text())


def test_a_connection_would_be_noticed(attempts, run_cli, tmp_path, monkeypatch):
    """A model by its name on the Hub is asked for, fails in one line, and is counted."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the Hub's client waits between its attempts
    result = run_cli("predict", "nobody/nothing", "photo.jpg", "--out", tmp_path / "found", "--device", "cpu")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert attempts
    with pytest.raises(retinaconf.errors.InputError):
        retinaconf.load("nobody/nothing")
