"""The files of deploy/ are what their systems take: Kubernetes' schemas, hadolint, Dask's options, the commands' options."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stfgan_xr.errors import InputError, NothingToDo
from tests.test_commands import arguments, digest, run  # noqa: F401

DEPLOY = Path(__file__).parents[1] / "deploy"


def program(name: str) -> str:
    """A program of the environment; skips where it is not installed."""
    found = Path(sys.executable).with_name(name)
    if not found.exists():
        pytest.skip(f"{name} is not installed ([dev])")
    return str(found)


def cronjob() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "cronjob.yaml").read_text()))


def validated(path: Path) -> subprocess.CompletedProcess[str]:
    command = [program("kubernetes-validate"), "--strict", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_the_cronjob_is_what_kubernetes_takes(tmp_path: Path) -> None:
    done = validated(DEPLOY / "cronjob.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    # What judges it sees an error.
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DEPLOY / "cronjob.yaml").read_text().replace("concurrencyPolicy:", "concurrency:"))
    assert validated(wrong).returncode != 0


def test_the_cronjob_knows_the_exit_codes() -> None:
    spec = cronjob()["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (rule, _) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [InputError.exit_code, NothingToDo.exit_code]


def commands() -> list[tuple[str, list[str]]]:
    """What the files of deploy/ have done, or say that one does: the arguments of pipelines.fuse."""
    (container,) = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    found = [("cronjob.yaml", container["args"])]
    for name, pattern in {
        "stfgan-xr.service": r"^ExecStart=(.*)$", "stfgan-xr.cron": r"^30 .* && (.*?) >> ", "fuse.sbatch": r"^#   sbatch (.*)$",
        "prefect_flow.py": r"^ARGUMENTS = \[(.*)\]$", "Dockerfile": r"^#   docker run (.*)$",
    }.items():  # fmt: skip
        lines = re.findall(pattern, (DEPLOY / name).read_text(), re.MULTILINE)
        assert lines, name
        found += [(name, shlex.split(line.replace("...", "--dates P3D").replace('",', '"'))) for line in lines]
    return found


@pytest.mark.parametrize(("name", "words"), commands())
def test_what_the_files_state_is_a_command_that_works(
    name: str, words: list[str], demo_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
) -> None:  # fmt: skip
    after = [number for number, word in enumerate(words, 1) if word in ("pipelines.fuse", "deploy/fuse.sbatch")]
    given = words[after[0] :] if after else words
    assert "--dates" in given
    monkeypatch.chdir(tmp_path)
    shutil.copy(demo_world / "aoi.geojson", "area.geojson")
    # Of two the last one counts.
    instead = ["--catalog", str(demo_world / "catalog.toml"), "--out", "run", "--plan"]
    code, said, err = run(*given, *instead)
    assert code == 0, err
    assert "fused.zarr" in said
    assert "a worker" in said


def test_the_dockerfile_is_good_style() -> None:
    done = subprocess.run(
        [program("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_copies_what_the_package_needs_and_nothing_that_is_not_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    root = DEPLOY.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert copied == packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((root / name).exists() for name in copied)
    kept = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert set(kept) == copied
    # Slim images lack what the wheels of GDAL take from the system.
    import rasterio

    libraries = list((Path(rasterio.__file__).parents[1] / "rasterio.libs").glob("libgdal*"))
    if any(b"libexpat.so.1" in library.read_bytes() for library in libraries):
        assert re.search(r"^RUN apt-get .* libexpat1 ", text, re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()


def test_the_image_starts_what_it_is_told_to(tmp_path: Path) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    # What the operator has schedulers and workers do is the whole command, and so are ours.
    kubecluster = pytest.importorskip("dask_kubernetes.operator.kubecluster.kubecluster")
    spec = kubecluster.make_cluster_spec("fuse", image="stfgan_xr:0.1.0")["spec"]
    told = [spec[part]["spec"]["containers"][0]["args"] for part in ("scheduler", "worker")]
    (container,) = cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (default,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    (example,) = re.findall(r"^#   docker run .* stfgan_xr (.*)$", text, re.MULTILINE)
    assert not re.search(r"^ENTRYPOINT", text, re.MULTILINE)
    (made,) = re.findall(r"^RUN (for name in .*?)\n\n", text, re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-c", made.replace("/usr/local/bin", str(tmp_path))], check=True)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    for words in (*told, container["args"], json.loads(default), shlex.split(example)):
        command = [*words, "--help"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=100, env=os.environ | {"PATH": path}
        )
        assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_options_for_batch_systems_are_those_that_dask_jobqueue_knows() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    given = yaml.safe_load((DEPLOY / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    with (Path(jobqueue.__file__).parent / "jobqueue.yaml").open() as file:
        known = yaml.safe_load(file)["jobqueue"]["slurm"]
    assert given.keys() <= known.keys()
    import dask

    with dask.config.set({"jobqueue.slurm": known | given}):
        script = jobqueue.slurm.SLURMJob("tcp://127.0.0.1:8786", name="w").job_script()
    assert "#SBATCH --cpus-per-task=4" in script
    # What the worker is told where nobody sets TMPDIR, and where somebody does.
    for temporary, said in ((None, "/tmp"), ("/scratch/of-a-job", "/scratch/of-a-job")):
        environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        environment |= {} if temporary is None else {"TMPDIR": temporary}
        told = subprocess.run(
            ["bash", "-c", script.replace(sys.executable, "echo")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        options = {name: told[number + 1] for number, name in enumerate(told[:-1]) if name.startswith("--")}
        assert options["--nworkers"] == "4"
        assert options["--lifetime"] == "220m"
        assert options["--local-directory"] == said


def test_the_job_file_is_shell() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "fuse.sbatch")], check=True)


PREFECT = os.environ.get("STFGAN_XR_PREFECT")


@pytest.mark.skipif(not PREFECT, reason="there is no Prefect (STFGAN_XR_PREFECT, see tests/servers/prefect.sh)")
@pytest.mark.timeout(400)
def test_the_flow_runs_the_command_and_tries_again_what_may_help_and_nothing_else(
    demo_world: Path, finished: Path, tmp_path: Path
) -> None:
    # In place of the interpreter: it notes that it was started, and ends with a code or, without one, is it.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho started >>"$STARTS"\n[ -z "$CODE" ] || exit "$CODE"\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    code = """
import os
import sys

sys.path.insert(0, sys.argv[1])
import prefect_flow as flow

flow.fuse.retry_delay_seconds = [0, 0, 0]
for number in ("", "0", "2", "3", "4"):
    os.environ |= {"CODE": number, "STARTS": f"starts-{number}"}
    print(f"ended {number}:", flow.nightly(sys.argv[2:], return_state=True).type.value)
"""
    environment = {
        "PYTHON": str(python), "PYTHONPATH": str(DEPLOY.parent), "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200",
    }  # fmt: skip
    done = subprocess.run(
        [str(PREFECT), "-c", code, str(DEPLOY), *arguments(str(demo_world / "catalog.toml"), "run")],
        capture_output=True, text=True, check=False, timeout=380, env=os.environ | environment, cwd=tmp_path,
    )  # fmt: skip
    ends = dict(re.findall(r"^ended (\d?): (\w+)", done.stdout, re.MULTILINE))
    assert ends == {"": "COMPLETED", "0": "COMPLETED", "2": "FAILED", "3": "COMPLETED", "4": "FAILED"}, done.stderr
    starts = {number: len((tmp_path / f"starts-{number}").read_text().splitlines()) for number in ends}
    assert starts == {"": 1, "0": 1, "2": 1, "3": 1, "4": 4}
    assert digest(tmp_path / "run") == digest(finished)
    assert "fused.zarr (delta): 1/1 blocks" in done.stderr  # what the command says is in the log of the flow
