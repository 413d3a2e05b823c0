"""A conversation in the terminal, or with a pipe: what is typed, the commands in it, and the answers."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console

from modules.conversation import Answer, Conversation
from modules.errors import InputError
from orchestrator.configuration.schema import nearest, shown
from orchestrator.display.lines import Lines, PipedLines, TypedLines
from orchestrator.display.terminal import is_plain, new_console, write_text
from orchestrator.errors import OrchestratorError
from orchestrator.storage.new_file import NewFile
from orchestrator.storage.redaction import redact

_HELP = """\
/system TEXT  give the model a system message; without TEXT it has none
/reset        forget all that was said; the system message stays
/save FILE    write the messages as JSON into a new file, a path or any fsspec URL
/help         show this
/exit         end, as Ctrl-D does
//TEXT        a message that begins with /
Ctrl-C stops an answer; what it has said until then stays in the conversation."""


def converse(conversation: Conversation, title: str) -> int:
    """Hold a conversation until the input ends, and return how many lines of a pipe were refused.

    Args:
        conversation: With the model.
        title: What a terminal shows about the model.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that what is no text can be refused, line by line
    console = new_console()
    lines = TypedLines(console, "> ") if sys.stdin.isatty() else PipedLines()
    return Chat(conversation, lines, console).run(title)


class Chat:
    """The loop of a conversation; answers go to standard output, all else to a terminal or standard error."""

    def __init__(self, conversation: Conversation, lines: Lines, console: Console) -> None:
        self._conversation, self._lines, self._console = conversation, lines, console
        is_at_terminal = lines.are_typed and console.file.isatty()
        self._notes = console if is_at_terminal else new_console(stderr=True)
        self._num_refused = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda _: self._note(_HELP),
        }

    def run(self, title: str) -> int:
        """Read and answer messages until the input ends; return how many were refused that nobody could write anew."""
        if self._lines.are_typed:
            self._note(f"{title}\n/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.\n")
        is_warned = False
        while True:
            try:
                line = self._lines.read()
                if line is None or line.strip() == "/exit":
                    break
                is_warned = False
                self._take(line)
            except KeyboardInterrupt:
                if not self._lines.are_typed:
                    raise
                self._note("")
                if is_warned and not self._lines.is_begun():
                    break
                if is_warned := not self._lines.is_begun():
                    self._note("Ctrl-C once more, Ctrl-D or /exit ends.")
        if line is None and self._lines.are_typed:
            self._note("")
        return 0 if self._lines.are_typed else self._num_refused

    def _take(self, line: str) -> None:
        """Do what a line asks for; a mistake in it is reported, and the conversation is as before."""
        try:
            _check_text(line)
            if line.startswith("/") and not line.startswith("//"):
                self._obey(line)
            elif line.strip():
                self._answer(line.removeprefix("/"))
        except (InputError, OrchestratorError) as error:
            self._num_refused += 1
            self._note(f"error: {redact(str(error))}")

    def _obey(self, line: str) -> None:
        name, *rest = line.split(maxsplit=1)
        if name not in self._commands:
            near = nearest(name, [*self._commands, "/exit"])
            remedy = f"did you mean {near}?" if near else "/help lists them"
            raise InputError(f"{shown(name)}: no such command; {remedy} (a message that begins with / is written //)")
        self._commands[name](rest[0].strip() if rest else "")

    def _set_system(self, text: str) -> None:
        self._conversation.set_system(text)
        self._note("The model has a new system message." if text else "The model has no system message.")

    def _reset(self, rest: str) -> None:
        if rest:
            raise InputError(f"/reset {shown(rest)}: takes nothing; /system TEXT changes the system message")
        self._conversation.reset()
        self._note("All that was said is forgotten.")

    def _save(self, url: str) -> None:
        if not url:
            raise InputError("/save: name a new file, as in /save chat.json")
        content = json.dumps({"messages": self._conversation.messages}, ensure_ascii=False, indent=2) + "\n"
        file = NewFile(url, "/save ")
        file.write(content.encode())
        self._note(f"Saved as {file.url}.")

    def _answer(self, question: str) -> None:
        answer: Answer | None = None
        try:
            with self._conversation.asked(question) as answer:
                self._report_forgotten(answer)
                self._stream(answer)
        except KeyboardInterrupt:  # the second one, while something was computed
            if answer is None or not self._lines.are_typed:
                raise
        write_text(self._console, "\n")
        self._report_end(answer)

    def _stream(self, answer: Answer) -> None:
        if not self._lines.are_typed:
            for piece in answer:
                write_text(self._console, piece)
            return
        with _interrupts() as is_interrupted:
            for piece in answer:
                write_text(self._console, piece)
                if is_interrupted():
                    break
        write_text(self._console, answer.stop())

    def _report_forgotten(self, answer: Answer) -> None:
        if number := answer.num_forgotten:
            turns = f"{number} oldest turns" if number > 1 else "oldest turn"
            self._note(f"[the conversation is too long for the model, which no longer sees the {turns}]")

    def _report_end(self, answer: Answer) -> None:
        notes = {
            "max_new_tokens": f"[cut after max_new_tokens={answer.num_tokens}]",
            "positions": "[cut: the model sees no more tokens at once]",
            "interrupt": "[stopped; what it said stays in the conversation]"
            if answer.text
            else "[stopped before it said anything; the question is dropped]",
        }
        if answer.ended_by in notes:
            self._note(notes[answer.ended_by])
        if self._lines.are_typed:
            self._note("")

    def _note(self, text: str) -> None:
        write_text(self._notes, f"{text}\n", style="" if is_plain(self._notes) else "dim")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed; a second one interrupts at once, in the midst of a computation."""
    was_pressed = False

    def press(*_: object) -> None:
        nonlocal was_pressed
        if was_pressed:
            raise KeyboardInterrupt
        was_pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: was_pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _check_text(line: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise InputError("the line holds bytes that are no UTF-8; write it anew") from None
