"""What is judged without Windows: paths of pipes, and the answer of systems that have none."""

from __future__ import annotations

import sys
from pathlib import PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trioconn._errors as errors
from trioconn._establish.named_pipe import check_pipe_path, open_pipe, require_named_pipes

LONGEST_NAME = 256 - len(r"\\.\pipe\\"[:-1])


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (r"\\.\pipe\name", r"\\.\pipe\name"),
        ("//./pipe/docker_engine", r"\\.\pipe\docker_engine"),
        (r"\\.\PIPE\Name", r"\\.\pipe\Name"),
        (r"\\.\pipe\LOCAL\name", r"\\.\pipe\LOCAL\name"),
        ("//./pipe/a/b", r"\\.\pipe\a\b"),
        (r"\\.\pipe\.hidden", r"\\.\pipe\.hidden"),
        (r"\\.\pipe\a name: {8}|ä", r"\\.\pipe\a name: {8}|ä"),
        (PureWindowsPath(r"\\.\pipe\name"), r"\\.\pipe\name"),
        ("\\\\.\\pipe\\" + "n" * LONGEST_NAME, "\\\\.\\pipe\\" + "n" * LONGEST_NAME),
    ],
)
def test_accepted(path: str, canonical: str) -> None:
    assert check_pipe_path(path, allow_remote=False) == canonical
    assert check_pipe_path(path, allow_remote=True) == canonical


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="empty"),
        pytest.param("name", id="no prefix"),
        pytest.param(r"pipe\name", id="half a prefix"),
        pytest.param(r"\\.\pipe", id="no name"),
        pytest.param("\\\\.\\pipe\\", id="an empty name"),
        pytest.param(r"\\.\mailslot\name", id="another device"),
        pytest.param(r"\\.\C:\file", id="a file"),
        pytest.param(r"\\?\pipe\name", id="not rewritten by Windows, and not canonical"),
        pytest.param(r"\??\pipe\name", id="of the kernel"),
        pytest.param(r"\\\pipe\name", id="no server"),
        pytest.param(r"\\.\pıpe\name", id="a letter that is i in capitals"),
        pytest.param(r"\\.\pipe\..\C:\file", id="out of the pipes"),
        pytest.param("//./pipe/../C:/file", id="out of the pipes, with slashes"),
        pytest.param(r"\\.\pipe\a\.\b", id="a dot"),
        pytest.param(r"\\.\pipe\a\\b", id="an empty part"),
        pytest.param("\\\\.\\pipe\\name\\", id="an empty last part"),
        pytest.param(r"\\.\pipe\name.", id="a dot that Windows takes away"),
        pytest.param("\\\\.\\pipe\\name ", id="a space that Windows takes away"),
        pytest.param("\\\\.\\pipe\\na\0me", id="NUL"),
        pytest.param("\\\\.\\pipe\\na\nme", id="LF"),
        pytest.param("\\\\.\\pipe\\na\x7fme", id="DEL"),
        pytest.param("\\\\.\\pipe\\na\ud800me", id="half a character"),
        pytest.param("\\\\.\\pipe\\" + "n" * (LONGEST_NAME + 1), id="too long"),
        pytest.param("\\\\.\\pipe\\" + "😀" * (LONGEST_NAME // 2 + 1), id="too long in UTF-16"),
    ],
)
def test_refused(path: str) -> None:
    for allow_remote in (False, True):
        with pytest.raises(errors.InvalidTargetError, match=r"pipe"):
            check_pipe_path(path, allow_remote=allow_remote)


@pytest.mark.parametrize("path", [r"\\server\pipe\name", "//server.example/pipe/name", r"\\127.0.0.1\pipe\name"])
def test_remote_only_when_asked_for(path: str) -> None:
    with pytest.raises(errors.InvalidTargetError, match=r"another machine.*allow_remote=True"):
        check_pipe_path(path, allow_remote=False)
    assert check_pipe_path(path, allow_remote=True) == path.replace("/", "\\")


@pytest.mark.parametrize(
    "server", ["..", "a.", "-a", "a@SSL", "a@80", "a:b", "a b", "?", "ä", "a\0b", "a%2e", "a\nb", "[::1]"]
)
def test_remote_machine_without_a_sound_name(server: str) -> None:
    for allow_remote in (False, True):
        with pytest.raises(errors.InvalidTargetError):
            check_pipe_path(rf"\\{server}\pipe\name", allow_remote=allow_remote)


@pytest.mark.parametrize("path", [b"\\\\.\\pipe\\name", None, 3])
def test_wrong_type(path: object) -> None:
    with pytest.raises(TypeError):
        check_pipe_path(path, allow_remote=False)  # type: ignore[arg-type]


@given(st.text(), st.booleans())
def test_what_is_accepted_is_canonical(name: str, slashes: bool) -> None:
    """What the function returns it accepts again, unchanged, and it is in the namespace of pipes."""
    path = "//./pipe/" + name if slashes else "\\\\.\\pipe\\" + name
    try:
        canonical = check_pipe_path(path, allow_remote=False)
    except errors.InvalidTargetError:
        return
    assert canonical.startswith("\\\\.\\pipe\\")
    assert not {"", ".", ".."} & set(canonical.split("\\")[4:])
    assert check_pipe_path(canonical, allow_remote=False) == canonical


@pytest.mark.skipif(sys.platform == "win32", reason="this system has named pipes")
async def test_other_systems_say_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Windows.*UnixConnector"):
        require_named_pipes()
    with pytest.raises(NotImplementedError, match=r"Windows.*UnixConnector"):
        await open_pipe(r"\\.\pipe\name", report=None)
