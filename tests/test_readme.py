"""The README's Python does what it says, and its commands exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from wiremap.cli import main

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    namespace: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), namespace)  # noqa: S102
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[-1]) > 0.5
    assert (tmp_path / "circuit.graphml").is_file()


def test_the_example_runs() -> None:
    runpy.run_path(str(README.parent / "examples" / "own_bridge.py"))


def test_the_commands_exist() -> None:
    commands = {
        word
        for block in blocks("sh")
        for line in block.splitlines()
        for word in re.findall(r"wiremap (\w+)", line)
    }
    assert {"discover", "models", "tasks"} <= commands
    for command in commands:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_the_make_targets_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert f"\n{target}:" in makefile
