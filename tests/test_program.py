"""The commands as one program: its list, its help, and what a real shell completes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from pipelines import __main__ as program
from pipelines import console
from pipelines.console import AGAIN, main, out

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.stem
    for path in (ROOT / "pipelines").glob("*.py")
    if hasattr(import_module(f"pipelines.{path.stem}"), "command") and path.stem != "__main__"
)


def test_every_command_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(program.COMMANDS) == MODULES
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["stfgan-xr"])
    with pytest.raises(SystemExit) as stop:
        program.start()
    assert not stop.value.code
    shown = capsys.readouterr().out
    for name, about in program.COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(about)}", shown), name


@pytest.mark.parametrize("module", MODULES)
def test_help_fits_eighty_columns_and_names_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        main(import_module(f"pipelines.{module}").command)
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    options = [line for line in shown.splitlines() if re.match(r"│[ *]+--", line) and "--help" not in line]
    assert options or module == "catalogs"
    assert not [line for line in options if re.search(r"<\w+", line)], "Python's types"


def test_a_command_of_the_program_is_that_of_the_module() -> None:
    def asked(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout, done.stderr

    assert asked("pipelines", "catalogs") == asked("pipelines.catalogs")
    code, _, said = asked("pipelines", "catalogs", "inspect", "absent.json")
    assert (code, said) == asked("pipelines.catalogs", "inspect", "absent.json")[::2]
    code, _, said = asked("pipelines", "exprot")
    assert code == 2
    assert "Did you mean 'export'" in " ".join(said.split())


def test_a_shell_completes_commands_options_and_values(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash is installed")
    (entry,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    module, _, function = entry[1].partition(":")
    script = tmp_path / entry[0]
    script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")  # as pip writes it
    script.chmod(0o755)
    asks = f"""
    PATH="{tmp_path}:$PATH"
    eval "$({entry[0]} --show-completion bash)"
    ask() {{
      COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
      _stfgan_xr_completion {entry[0]}
      echo "${{COMPREPLY[*]}}"
    }}
    ask {entry[0]} ca
    ask {entry[0]} export run --o
    ask {entry[0]} export run --format net
    ask {entry[0]} cubes --catalog e
    """
    done = subprocess.run([bash, "-c", asks], capture_output=True, text=True, check=True, timeout=100, cwd=ROOT)
    assert done.stdout.splitlines() == ["calibrate catalogs", "--out --overwrite", "netcdf", "earth-search"]


def test_an_interruption_says_whether_the_command_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["command"])
    for then in ("the same command resumes", AGAIN):
        with pytest.raises(SystemExit) as stop:
            main(command, then)
        assert stop.value.code == 130
        assert capsys.readouterr().err.strip() == f"error: interrupted; {then}"


def test_a_line_stays_a_line_where_nobody_looks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out.print("done: runs/[red]" + " word" * 60)
    assert capsys.readouterr().out == "done: runs/[red]" + " word" * 60 + "\n"


def test_a_training_says_how_long_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100, 1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)) / 2)
    with console.Steps("training", of_anchor=False) as shown:
        for step in (41, 42, 60):
            shown(step, 60, {"content": 0.5, "mse_anchor": 0.1})
    assert capsys.readouterr().err.splitlines() == [
        "training: 42/60 steps, loss 0.5, 9 s left", "training: 60/60 steps, loss 0.5, 0 s left",
    ]  # fmt: skip
