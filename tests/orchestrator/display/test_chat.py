"""What is typed into a conversation, or piped into it, and what is shown."""

import io
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from chat_models import NO_SYSTEM, TEMPLATE, byte_tokenizer, chat_model, template_of
from rich.console import Console

from modules.conversation import Conversation
from modules.generation.sampling import Sampling
from orchestrator.display.chat import Chat, converse

MODEL, TOKENIZER = chat_model(200), byte_tokenizer()


class FakeTerminal(io.StringIO):
    """What a terminal shows."""

    def isatty(self) -> bool:
        return True


class FakeLines:
    """Somebody who types; an exception in place of a line is Ctrl-C, with or without a line begun."""

    are_typed = True

    def __init__(self, lines: Sequence[str | type[BaseException]], is_begun: bool = False) -> None:
        self._lines, self._is_begun = list(lines), is_begun

    def read(self) -> str | None:
        line = self._lines.pop(0) if self._lines else None
        if isinstance(line, type):
            raise line
        return line

    def is_begun(self) -> bool:
        return self._is_begun


def conversation_of(source: str = TEMPLATE, max_new_tokens: int = 6) -> Conversation:
    return Conversation(MODEL, TOKENIZER, template_of(source), Sampling(max_new_tokens=max_new_tokens, temperature=0))


def typed(*lines: str | type[BaseException], conversation: Conversation | None = None, is_begun: bool = False) -> str:
    """Return what a terminal shows."""
    shown = FakeTerminal()
    console = Console(file=shown, color_system=None, highlight=False)
    assert Chat(conversation or conversation_of(), FakeLines(lines, is_begun), console).run("a model") == 0
    return shown.getvalue()


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes, conversation: Conversation | None = None) -> int:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    return converse(conversation or conversation_of(), "a model")


def test_a_pipe_gets_the_answers_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = conversation_of()
    assert piped(monkeypatch, "Hello\r\n\n  \n//me 😀\nno end of line".encode(), conversation) == 0
    said = capsys.readouterr()
    messages = conversation.messages
    assert [message["content"] for message in messages[::2]] == ["Hello", "/me 😀", "no end of line"]
    assert said.out == "".join(f"{message['content']}\n" for message in messages[1::2])
    assert set(said.err.splitlines()) == {"[cut after max_new_tokens=6]"}


def test_refused_lines_of_a_pipe_are_counted_and_the_rest_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation = conversation_of(NO_SYSTEM)
    lines = b"Hello\n\xff\xfe no text\n/nope\n/system Obey\n" + b"x" * 300 + b"\nBye\n"
    assert piped(monkeypatch, lines, conversation) == 4
    said = capsys.readouterr()
    assert [message["content"] for message in conversation.messages[::2]] == ["Hello", "Bye"]
    assert len(said.out.splitlines()) == 2
    for part in ("no UTF-8", "/nope: no such command", "no system role", "the message has 303 tokens"):
        assert part in said.err


def test_commands_do_what_help_says(tmp_path: Path) -> None:
    conversation = conversation_of()
    file = tmp_path / "a file.json"
    shown = typed("/system Be brief.", "Hello 😀", f"/save {file}", "/reset", "/help", "/exit", "never read")
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert saved["messages"][1]["content"] == "Hello 😀"
    assert "😀" in file.read_text()
    assert saved["messages"][2]["content"] in shown
    assert "/save FILE" in shown
    typed("/system Be brief.", "Hello", "/reset", "/system Be long.", conversation=conversation)
    assert conversation.messages == [{"role": "system", "content": "Be long."}]
    typed("/system", conversation=conversation)
    assert conversation.messages == []


def test_save_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text("mine")
    conversation = conversation_of()
    shown = typed("Hello", f"/save {file}", f"/save {tmp_path}/", "/save", "/save memory://saved/chat.json", "Bye")
    assert file.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]
    assert f"error: /save {file}: exists already, and is not replaced" in shown
    assert "names a folder" in shown
    assert "/save: name a new file" in shown
    assert "Saved as memory://saved/chat.json" in shown
    again = typed("/save memory://saved/chat.json", conversation=conversation)
    assert "exists already" in again


@pytest.mark.parametrize(("line", "part"), [("/rest", "did you mean /reset"), ("/", "/help"), ("/reset x", "nothing")])
def test_a_mistaken_command_is_reported_and_not_sent(line: str, part: str) -> None:
    conversation = conversation_of()
    assert part in typed(line, conversation=conversation)
    assert conversation.messages == []


def test_ctrl_c_twice_ends_and_once_gives_a_hint() -> None:
    conversation = conversation_of()
    shown = typed(KeyboardInterrupt, "Hello", KeyboardInterrupt, KeyboardInterrupt, "late", conversation=conversation)
    assert [message["content"] for message in conversation.messages[::2]] == ["Hello"]
    assert shown.count("once more") == 2


def test_ctrl_c_in_a_line_only_drops_the_line() -> None:
    conversation = conversation_of()
    shown = typed(*[KeyboardInterrupt] * 3, "Hello", conversation=conversation, is_begun=True)
    assert "once more" not in shown
    assert len(conversation.messages) == 2


@pytest.mark.parametrize("num_presses", [1, 2])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(num_presses: int) -> None:
    conversation = conversation_of(max_new_tokens=100)
    presses = iter([signal.SIGINT] * num_presses)
    num_computed = 0

    def press(*_: object) -> None:
        nonlocal num_computed
        num_computed += 1
        if num_computed == 3:
            for number in presses:
                signal.raise_signal(number)

    before = signal.getsignal(signal.SIGINT)
    hook = MODEL.final_norm.register_forward_pre_hook(press)
    shown = typed("Hello", conversation=conversation)
    hook.remove()
    assert signal.getsignal(signal.SIGINT) is before
    # the first press lets the token be computed that has been begun
    assert len(conversation.messages[-1]["content"]) == 4 - num_presses
    assert "stopped; what it said stays" in shown
    assert len(typed("Bye", conversation=conversation)) > 0
    assert len(conversation.messages) == 4


def test_forgotten_turns_are_told() -> None:
    lines = ["x" * 60] * 4
    assert "which no longer sees the oldest turn]" in typed(*lines)


def test_control_characters_of_a_reason_reach_no_terminal() -> None:
    refusing = "{{ raise_exception('\\x1b]0;title\\x07') }}"
    assert "\x1b" not in typed("Hello", conversation=conversation_of(refusing))
