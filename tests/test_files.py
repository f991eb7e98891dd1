"""Folders of a run: the same verbs on a disk and in an object store, and what a store that fails becomes."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stfgan_xr.errors import InputError, ResourceError, SourceError, StfganError
from stfgan_xr.files import Folder, LocalFolder, ObjectFolder, _reason, as_folder
from tests.conftest import CREDENTIALS
from tests.object_server import Objects, always

SECRETS = tuple(CREDENTIALS.values())


# ---------------------------------------------------------------- verbs


def test_what_is_written_is_read(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.read("a.json") is None
    folder.write_json("a.json", {"b": 1, "a": 2})
    (folder / "cube").write("x", b"1")
    assert folder.read("a.json") == b'{\n "a": 2,\n "b": 1\n}\n'
    assert folder.exists()
    assert folder.names() == ["a.json"]
    assert folder.names("cube") == ["x"]
    assert (folder / "cube").read("x") == folder.read("cube/x") == b"1"
    folder.write("a.json", b"2")
    assert folder.read("a.json") == b"2"


def test_what_is_deleted_is_gone_and_nothing_else(folder: Folder) -> None:
    for name in ("cube", "cube2"):
        for key in ("zarr.json", "a.json", "z.json"):
            (folder / name).write(key, b"1")
    (folder / "cube").delete(last="zarr.json")
    (folder / "none").delete(last="zarr.json")
    folder.delete_file("cube2/a.json")
    folder.delete_file("none")
    assert not (folder / "cube").exists()
    assert folder.names("cube2") == ["z.json", "zarr.json"]
    assert not (folder / "none").exists()


def test_the_last_goes_last(objects: Objects) -> None:
    folder = as_folder("s3://bucket/run")
    for key in ("a.json", "zarr.json", "zz.json"):
        folder.write(key, b"1")
    objects.fault = always("500", "POST", "")
    with pytest.raises(ResourceError, match=r"cannot write s3://bucket/run: .*500.*run the same command again"):
        folder.delete(last="zarr.json")
    assert folder.names() == ["a.json", "zarr.json", "zz.json"]
    answers = iter(["", *["500"] * 99])
    objects.fault = lambda method, key: next(answers) if method == "POST" else None
    with pytest.raises(ResourceError):
        folder.delete(last="zarr.json")
    assert folder.names() == ["zarr.json"]


def test_many_files_come_in_their_order(folder: Folder) -> None:
    names = [f"{n:03d}" for n in range(60)]
    for name in names:
        folder.write(name, name.encode())
    assert folder.read_all(names[::-1]) == [name.encode() for name in names[::-1]]
    with pytest.raises(SourceError, match="none was deleted while it was read"):
        folder.read_all(["000", "none"])


def test_a_folder_travels_as_its_address(folder: Folder, objects: Objects) -> None:
    folder.write("a", b"1")
    pickled = pickle.dumps(folder)
    assert len(pickled) < 300
    assert not any(secret.encode() in pickled for secret in SECRETS)
    assert pickle.loads(pickled).read("a") == b"1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("run", LocalFolder(Path("run"))),
        ("./a b/run", LocalFolder(Path("a b/run"))),
        (Path("run"), LocalFolder(Path("run"))),
        ("s3://bucket", ObjectFolder("s3://bucket")),
        ("s3://bucket/a//run/", ObjectFolder("s3://bucket/a/run")),
        ("gs://bucket/run", ObjectFolder("gs://bucket/run")),
    ],
)
def test_names_of_folders(name: str | Path, expected: Folder) -> None:
    assert as_folder(name) == expected
    assert as_folder(expected) is expected


@pytest.mark.parametrize(
    "name",
    ["s3://", "s3:///run", "s3:/bucket/run", Path("s3://bucket/run"), "s3://key:secret@bucket/run", "s3://bucket/r?a=1",
     "s3://bucket/../run", "http://bucket/run", "file:///run", "s3://bucket/a run"],
)  # fmt: skip
def test_names_that_are_refused(name: str | Path) -> None:
    with pytest.raises(InputError):
        as_folder(name)


# ---------------------------------------------------------------- a store that fails


def failure(call: Callable[[], object]) -> StfganError:
    with pytest.raises(StfganError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert not any(secret in text for secret in SECRETS)
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("403", SourceError, r"permission denied \(InvalidAccessKeyId\)"),
        ("503", SourceError, r"answers 503 Service Unavailable \(SlowDown\)"),
        ("reset", SourceError, "does not answer"),
        ("cut", SourceError, ""),
        ("hang", SourceError, "does not answer"),
    ],
)
def test_a_store_that_stays_wrong_is_an_error(objects: Objects, fault: str, kind: type[StfganError], said: str) -> None:
    folder = as_folder("s3://bucket/run")
    folder.write("a", b"12345678")
    objects.fault = always(fault, ".*", "")
    error = failure(lambda: folder.read("a"))
    assert type(error) is kind
    assert str(error).startswith("cannot read s3://bucket/run: ")
    assert re.search(said, str(error)), str(error)
    if fault != "cut":  # of what is asked to be written nothing comes back that could be
        error = failure(lambda: folder.write("a", b"2"))
        assert type(error) is ResourceError
        assert "finished blocks are kept: run the same command again" in str(error)
        assert type(failure(folder.check)) is ResourceError


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "cut", "hang"])
def test_what_passes_is_asked_again(objects: Objects, fault: str) -> None:
    folder = as_folder("s3://bucket/run")
    objects.fault = always(fault, "PUT", "", 2)
    folder.write("a", b"12345678")
    objects.fault = always(fault, "GET", "", 2)
    assert folder.read("a") == b"12345678"


def test_no_such_bucket(objects: Objects) -> None:
    folder = as_folder("s3://nobucket/run")
    for call, kind in (
        (lambda: folder.read("a"), InputError),
        (folder.exists, InputError),
        (folder.names, InputError),
        (lambda: folder.write("a", b""), ResourceError),
        (lambda: folder.delete("a"), ResourceError),
        (folder.check, ResourceError),
    ):
        error = failure(call)
        assert type(error) is kind
        assert "there is no s3://nobucket; make it or choose another" in str(error)


def test_what_the_environment_lacks_is_said(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert "AWS_ALLOW_HTTP=true" in str(failure(lambda: as_folder("s3://bucket/a").read("x")))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = failure(lambda: as_folder("s3://bucket/b").read("x"))
    assert type(error) is InputError
    assert "no credentials in the environment" in str(error)


def test_a_store_that_is_not_there_is_an_error(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folder = as_folder("s3://bucket/elsewhere")
    assert "does not answer; check AWS_ENDPOINT_URL" in str(failure(folder.check))


@pytest.mark.parametrize("name", ["run", "run/below", "run/far/below"])
def test_a_file_is_no_run_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"run:? is a file; choose a folder"):
        as_folder(tmp_path / name).check()
    as_folder(tmp_path / "absent" / "b").check()


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("{}")

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot read .*run\.json: permission denied"):
        as_folder(tmp_path).read("run.json")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    folder = as_folder(tmp_path / "run")
    assert folder.create("a", b"1")
    assert not folder.create("a", b"2")
    assert folder.read("a") == b"1"
    assert folder.names() == ["a"]


def test_a_folder_above_may_be_closed_to_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, above = os.open, tmp_path

    def opened(path: Any, *more: Any, **others: Any) -> int:
        if Path(path) == above:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *more, **others)

    monkeypatch.setattr(os, "open", opened)
    folder = as_folder(tmp_path / "run")
    folder.write("a", b"1")
    assert folder.read("a") == b"1"
    above = tmp_path / "run"
    with pytest.raises(ResourceError, match="permission denied"):
        folder.write("a", b"2")


def test_what_a_store_answers_is_not_shown_with_its_queries() -> None:
    from obstore.exceptions import GenericError

    said, _ = _reason("az://box/run", GenericError("Generic error: GET https://a.example/box?sig=secret: odd"))
    assert said == "GenericError: Generic error: GET https://a.example/box odd"
    assert _reason("az://box/run", GenericError(""))[0] == "GenericError: "
