"""Standard streams: closed ones, pipes without a reader, full disks, and locales that know ASCII alone."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import arguments, write_text

from orchestrator.cli import main
from orchestrator.display import streams

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
FULL_DISK = "error: standard output: No space left on device\n"


def pipe() -> tuple[int, int]:
    """Return the ends of its reader and its writer."""
    return os.pipe()


def terminal() -> tuple[int, int]:
    return os.openpty()


def full_disk() -> tuple[int, int]:
    return os.open("/dev/full", os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


def closing(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


@pytest.mark.parametrize(
    ("target", "expected", "line"), [(pipe, 141, ""), (terminal, 141, ""), (full_disk, 1, FULL_DISK)]
)
@pytest.mark.parametrize("ends", [True, False])
def test_lost_output_decides_the_exit_code_of_a_command_that_was_done(
    target: Callable[[], tuple[int, int]],
    expected: int,
    line: str,
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = target()
    monkeypatch.setattr(sys, "stdout", streams._stream(writer, None))
    os.close(reader)
    (streams.end_when_unread if ends else streams.go_on_unread)()
    try:
        print("text", flush=True)
        assert not ends
    except streams.LostOutputError:
        assert ends
    assert streams.exit_code(2) == 2
    assert streams.exit_code(0) == expected
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("command", ["--help", "pretrain --help", "pretrain --info all", "runs"])
@pytest.mark.parametrize(("target", "expected", "said"), [(pipe, 141, ""), (full_disk, 1, FULL_DISK)])
def test_command_whose_output_is_lost_ends_without_a_traceback(
    command: str, target: Callable[[], tuple[int, int]], expected: int, said: str, tmp_path: Path
) -> None:
    reader, writer = target()
    os.close(reader)
    words = [sys.executable, "-m", "orchestrator", *command.split()]
    done = subprocess.run(
        words, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (expected, said)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
def test_no_file_takes_the_place_of_a_closed_stream(closed: tuple[int, ...], tmp_path: Path) -> None:
    script = """
import json, os, subprocess, sys
from orchestrator.display.streams import open_standard_streams
open_standard_streams()
with open(sys.argv[1], "w") as file:
    print("text"), print("text", file=sys.stderr)
    child = subprocess.run([sys.executable, "-c", "import sys; print(sys.stdin.read())"], stdout=subprocess.PIPE)
    json.dump({"file": file.fileno(), "read": sys.stdin.read(), "child": child.returncode}, file)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "found.json")]
    subprocess.run(command, preexec_fn=closing(*closed), stdin=subprocess.DEVNULL, env=ENVIRONMENT, check=True)
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert found["file"] > 2
    assert (found["read"], found["child"]) == ("", 0)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_run_without_standard_input_whose_reader_leaves_is_trained_to_its_end(tmp_path: Path) -> None:
    words = arguments(write_text(tmp_path / "text.txt"), tmp_path, "run.name=left", "tracking.mode=disabled")
    command = [sys.executable, "-m", "orchestrator", *words]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=closing(0), env=ENVIRONMENT
    )
    assert run.stdout is not None
    assert run.stderr is not None
    while b"step" not in run.stdout.readline():
        assert run.poll() is None
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 141
    run.stderr.close()
    assert json.loads((tmp_path / "runs/left/metrics.json").read_bytes())["progress/step"] == 20
    assert (tmp_path / "runs/left/checkpoints/step_00000020/COMMITTED").exists()


def test_other_letters_than_ascii_arrive_in_a_locale_without_them(tmp_path: Path) -> None:
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "orchestrator", "generate", "model.path=x", "prompt=größe", "--cfg", "job"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env={**ENVIRONMENT, **ascii_alone}, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert "prompt: größe\n" in done.stdout.decode()


def test_letters_that_an_encoding_lacks_are_written_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", streams._stream(writer, io.TextIOWrapper(io.BytesIO(), encoding="latin-1")))
    print("ü \u4f60", flush=True)
    assert os.read(reader, 99) == b"\xfc \\u4f60\n"


def test_a_folder_that_was_deleted_is_no_place_to_start_from(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty_folder.rmdir()
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == "error: the current folder no longer exists; change to another one\n"
