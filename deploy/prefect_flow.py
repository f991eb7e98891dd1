"""A nightly run as a Prefect flow, in an environment with ``prefect>=3``, beside a server that schedules it:

    prefect server start
    PREFECT_API_URL=http://127.0.0.1:4200/api PYTHON=/srv/stfgan/.venv/bin/python python deploy/prefect_flow.py

``PYTHON`` names the interpreter of the environment that stfgan_xr is installed in. Keep the two apart: Prefect takes
other versions of some libraries than constraints.txt. What is tried again, and what not, follows from the exit codes of
the command.
"""

from __future__ import annotations

import os
import subprocess
import sys

from prefect import flow, get_run_logger, task
from prefect.states import Completed, Failed, State

BAD_INPUT, NOTHING_TO_DO = 2, 3
ARGUMENTS = ["--aoi", "113.9,22.5,114.1,22.7", "--dates", "P30D", "--out", "s3://my-bucket/shenzhen"]


class TryAgainError(RuntimeError):
    """The data source failed, disk or memory ran out, or blocks are missing: the same command goes on."""


def may_help(task: object, run: object, state: State) -> bool:
    """Whether another attempt makes sense."""
    return isinstance(state.result(raise_on_failure=False), TryAgainError)


@task(retries=3, retry_delay_seconds=[600, 1800, 3600], retry_condition_fn=may_help)
def fuse(arguments: list[str]) -> int:
    """Run the command and pass its lines on; the exit code."""
    command = [os.environ.get("PYTHON", sys.executable), "-m", "pipelines.fuse", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                get_run_logger().info(line.rstrip())
        except BaseException:
            process.terminate()  # it keeps what is finished
            raise
    if process.returncode not in (0, BAD_INPUT, NOTHING_TO_DO):
        raise TryAgainError(f"exit code {process.returncode}")
    return process.returncode


@flow(name="stfgan_xr")
def nightly(arguments: list[str] = ARGUMENTS) -> State:
    """One run; nothing to do is no failure."""
    code = fuse(arguments)
    if code == BAD_INPUT:
        return Failed(message="bad input: the log says what and what to do")
    return Completed(message="nothing to do" if code == NOTHING_TO_DO else "done")


if __name__ == "__main__":
    nightly.serve(name="nightly", cron="30 3 * * *", limit=1)
