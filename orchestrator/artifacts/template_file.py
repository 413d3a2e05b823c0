"""A chat template that a user names."""

from orchestrator.errors import UserError
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import redact


def read_template(path: str, setting: str) -> str:
    """Return the Jinja text of a file.

    Args:
        path: The file, at any fsspec URL.
        setting: The setting that names it, for messages.

    Raises:
        UserError: there is no such file, it is one of several, or it is not UTF-8.
    """
    field, found = f"{setting}={redact(path)}", find_files([path])
    if len(found) > 1:
        raise UserError(f"{field}: leads to {len(found)} files; name one")
    try:
        with found[0].open() as file:
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{field}: not UTF-8 ({error}); name a file with a Jinja template") from error
