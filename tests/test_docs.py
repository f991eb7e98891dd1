"""What README and documentation say works: every block of Python runs, every command and option is there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from benchmarks import pictures
from pipelines.__main__ import listed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[tuple[int, str, str]]:
    """Line, language and text of the fenced blocks of a page."""
    found, text = [], path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\{?[\w-]*\}?)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        found.append((text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


BLOCKS = [(path, *block) for path in PAGES for block in blocks(path)]
PYTHON = [(path.name, line, text) for path, line, language, text in BLOCKS if language == "python"]
SHELL = [(path.name, line, text) for path, line, language, text in BLOCKS if language in ("", "bash")]


@pytest.mark.parametrize(("page", "line", "text"), PYTHON, ids=lambda value: str(value)[:20])
def test_python_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, line: int, text: str
) -> None:
    (tmp_path / "run").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * line + text, page, "exec"), {"__name__": "example"})


@cache
def options(module: str) -> set[str]:
    """The options that a command of the project takes."""
    app = typer.Typer(add_completion=False)
    app.command()(import_module(module).command)
    return {name for parameter in get_command(app).params for name in (*parameter.opts, *parameter.secondary_opts)}


def listed_options() -> set[str]:
    """The options of all commands as one program."""
    return {name for parameter in get_command(listed()).params for name in parameter.opts}


@pytest.mark.parametrize(("page", "line", "text"), SHELL, ids=lambda value: str(value)[:20])
def test_commands_and_their_options_are_there(page: str, line: int, text: str) -> None:
    for command in text.replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if words[:1] == ["stfgan-xr"] and not words[1].startswith("--"):
            words = ["python", "-m", f"pipelines.{words[1]}", *words[2:]]
        if words[:1] == ["stfgan-xr"]:
            assert set(words[1:]) <= listed_options(), command
        elif words[:2] == ["python", "-m"]:
            known = options(words[2]) | {"--help"}
            assert {word.partition("=")[0] for word in words[3:] if word.startswith("--")} <= known, command
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_options_that_are_named_in_the_text_are_there() -> None:
    modules = [f"pipelines.{path.stem}" for path in (ROOT / "pipelines").glob("*.py")]
    known = {"--help"} | listed_options()
    for module in modules:
        if hasattr(import_module(module), "command"):
            known |= options(module)
    for path in PAGES:
        named = set(re.findall(r"`(--[a-z-]+)", path.read_text(encoding="utf-8")))
        assert named <= known, f"{path.name}: {named - known}"


def test_the_pictures_of_the_concepts_can_be_drawn_again(finished: Path, tmp_path: Path) -> None:
    pictures.command(finished, tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    named = set(re.findall(r"\]\((\w+\.jpg)\)", (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")))
    assert drawn == named
    assert all((ROOT / "docs" / name).is_file() for name in named)


def test_messages_that_are_explained_are_said() -> None:
    source = "".join(path.read_text() for name in ("stfgan_xr", "pipelines") for path in (ROOT / name).rglob("*.py"))
    said = re.sub(r'"\s*\+?\s*f?"', "", source)
    explained = re.findall(r"\*\*`([^`]+)`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
    assert len(explained) > 20
    for message in explained:
        for part in message.removeprefix("no ").split("..."):
            assert part.strip() in said, message


def test_toml_is_toml() -> None:
    found = [text for _, _, language, text in BLOCKS if language == "toml"]
    assert found
    for text in found:
        assert tomllib.loads(text)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="the documentation's libraries are not installed ([docs])")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert "stfgan_xr.store.open_cube" in reference
