"""What a process does that reads files and makes the parts of their text itself."""

from modules.data.parts import PartMaker
from modules.data.worker_process import serve


def main() -> None:
    """Serve until the other side closes the pipe."""
    serve(PartMaker())
