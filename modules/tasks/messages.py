"""The messages of a conversation in a row, checked."""

from typing import Any

from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.fields import checked_text, missing, shown

ROLES = ("system", "user", "assistant")
_FORM = '{"role": "user", "content": "Hello"}'


def checked_messages(row: Row, path: str) -> list[dict[str, Any]]:
    """Return the conversation of a row: perhaps a system message, then turns of user and assistant in turn.

    Either may speak last, and there may be no message at all.

    Raises:
        InputError: It is another thing; the message names the row and the turn.
    """
    given = row.values.get(path)
    if given is None:
        raise InputError(
            f"{row.location}: {missing(row, path)}; name another in task.messages_field, or remove the row"
        )
    if not isinstance(given, list | tuple):
        remedy = f"a conversation is a list of messages as {_FORM}"
        raise InputError(f"{row.location}: field {path!r} holds {shown(given)}, not a list; {remedy}")
    messages = [_checked(message, f"{row.location}: message {n}") for n, message in enumerate(given, start=1)]
    _check_order([message["role"] for message in messages], row.location)
    return messages


def _checked(message: Any, place: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InputError(f"{place} is {shown(message)}; write it as {_FORM}")
    role = message["role"]
    if role not in ROLES:
        raise InputError(f"{place} has the role {shown(role)}; the roles are {', '.join(ROLES)}; rename it")
    remedy = "write its text, or remove the row"
    return {**message, "content": checked_text(message["content"], f"{place}: its content", remedy)}


def _check_order(roles: list[str], location: str) -> None:
    if "system" in roles[1:]:
        place = roles.index("system", 1) + 1
        raise InputError(f"{location}: message {place} is a system message; there may be one, and it comes first")
    start = int(roles[:1] == ["system"])
    for place, role in enumerate(roles[start:]):
        number = start + place + 1
        if role == ("user", "assistant")[place % 2]:
            continue
        if place == 0:
            raise InputError(
                f"{location}: message {number} is by the assistant, and a user begins a conversation; "
                "add what it answers, or remove it"
            )
        remedy = "join them, or add what is missing between them"
        raise InputError(f"{location}: messages {number - 1} and {number} are both by the {role}; {remedy}")
