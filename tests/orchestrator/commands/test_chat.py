"""`orchestrator chat` as it is typed: at a terminal, from a pipe, and what it refuses before it loads a model."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_models import NO_SYSTEM, TEMPLATE, write_chat_model
from terminal import Terminal

from orchestrator.cli import main

ENDLESS = ("temperature=0", "max_new_tokens=1000000")
FIVE = ("temperature=0", "max_new_tokens=5")
ROOT = Path(__file__).resolve().parents[3]
CTRL_C, CTRL_D = "\x03", "\x04"
_UNTIL_READLINE_HEARS = 2.0
"""Seconds: Python's readline hears no signal between the prompt that it shows and its wait for a key."""


@pytest.fixture(scope="module")
def endless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that goes on for minutes."""
    return write_chat_model(tmp_path_factory.mktemp("models") / "endless", 200_000)


def test_ctrl_c_at_a_terminal_stops_the_answer_and_twice_at_the_prompt_the_program(
    tmp_path: Path, endless_model: Path
) -> None:
    with Terminal(["chat", f"model.path={endless_model}", *ENDLESS], tmp_path, TERM="xterm") as terminal:
        terminal.wait_for("> ")
        terminal.type("Größe 😀\r")
        terminal.wait_for_more(200)
        terminal.type(CTRL_C)
        terminal.wait_for("stopped; what it said stays")
        terminal.wait_for("> ")
        terminal.type("\x1b[200~two\n\tlines\x1b[201~\r")
        terminal.wait_for_more(200)
        terminal.type(CTRL_C)
        terminal.wait_for("stopped; what it said stays")
        terminal.wait_for("> ")
        terminal.type("/save chat.json\r")
        terminal.wait_for("Saved as")
        terminal.wait_for("> ")
        terminal.type("never sent")
        terminal.wait_for("never sent")
        time.sleep(_UNTIL_READLINE_HEARS)
        terminal.type(CTRL_C)
        terminal.wait_for("> ")
        time.sleep(_UNTIL_READLINE_HEARS)
        terminal.type(CTRL_C)
        terminal.wait_for("once more")
        terminal.wait_for("> ")
        assert terminal.process.poll() is None
        time.sleep(_UNTIL_READLINE_HEARS)
        terminal.type(CTRL_C)
        assert terminal.end() == 0
        assert terminal.is_restored()
        assert terminal.shown.count("\x1b[?2004h") == terminal.shown.count("\x1b[?2004l")
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == ["Größe 😀", "two\n\tlines"]
    for message in messages[1::2]:
        assert len(message["content"]) > 50
        assert message["content"] in terminal.shown.replace("^C", "")  # which the terminal shows itself


def test_a_dumb_terminal_gets_plain_text_and_pasted_lines_are_one_message(tmp_path: Path, endless_model: Path) -> None:
    command = ["chat", f"model.path={endless_model}", *FIVE]
    with Terminal(command, tmp_path, TERM="dumb") as terminal:
        terminal.wait_for("> ")
        terminal.type("two\nlines\n")
        terminal.wait_for("cut after max_new_tokens=5")
        terminal.wait_for("> ")
        terminal.type("/save chat.json\n")
        terminal.wait_for("Saved as")
        terminal.wait_for("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert terminal.is_restored()
    assert "\x1b" not in terminal.shown
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["content"] for message in messages[::2]] == ["two\nlines"]


def test_a_terminated_chat_leaves_the_terminal_as_it_was(tmp_path: Path, endless_model: Path) -> None:
    with Terminal(["chat", f"model.path={endless_model}"], tmp_path, TERM="xterm", NO_COLOR="1") as terminal:
        terminal.wait_for("> ")
        assert not terminal.is_restored()
        time.sleep(_UNTIL_READLINE_HEARS)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
        assert terminal.is_restored()
    assert "\x1b" not in terminal.shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")


def test_a_reader_that_has_enough_ends_the_chat(endless_model: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "chat", f"model.path={endless_model}", *FIVE]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"Hello\n" * 3)
    process.stdin.flush()
    assert len(process.stdout.readline()) == 6
    process.stdout.close()
    process.stdin.write(b"Hello\n" * 30)
    process.stdin.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141
    assert set(said.splitlines()) == {"[cut after max_new_tokens=5]"}


def without_weights(folder: Path, template: str | None = None) -> str:
    """Write a model whose weights cannot be loaded, and return the argument that names it."""
    (write_chat_model(folder, 64, template) / "model.safetensors").unlink()
    return f"model.path={folder}"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["chat", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_what_no_conversation_can_be_written_with_is_refused_before_the_weights_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = without_weights(tmp_path / "bare")
    assert "came without a chat template" in refused(capsys, bare)
    assert "chat_template=" in refused(capsys, bare)
    for name, content, part in (
        ("broken.jinja", b"{% for", "no valid Jinja"),
        ("latin.jinja", b"\xe9", "not UTF-8"),
        ("empty.jinja", b"", "empty"),
        ("raising.jinja", b"{{ raise_exception('never') }}", "never"),
    ):
        (tmp_path / name).write_bytes(content)
        said = refused(capsys, bare, f"chat_template={tmp_path / name}")
        assert part in said
        assert name in said
    assert "matches no file" in refused(capsys, bare, f"chat_template={tmp_path}/none.jinja")
    picky = without_weights(tmp_path / "picky", NO_SYSTEM)
    assert "no system role" in refused(capsys, picky, "system=Be brief.")


def test_a_template_and_a_system_message_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_chat_model(tmp_path / "bare", 64, None)
    (tmp_path / "given.jinja").write_text(TEMPLATE)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello\n/save " + bytes(tmp_path / "chat.json"))))
    given = (f"chat_template={tmp_path / 'given.jinja'}", "system=Be brief.", *FIVE)
    assert main(["chat", f"model.path={model}", *given]) == 0
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert capsys.readouterr().out == messages[-1]["content"] + "\n"
