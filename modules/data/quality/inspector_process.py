"""What an inspecting process does: reads documents on one pipe, writes what is found in them on the other."""

import sys

from modules.data.quality.inspection import Inspector, InspectorSettings
from modules.data.worker_process import serve


def main() -> None:
    """Serve until the other side closes the pipe; the argument on the command line is the settings as JSON."""
    serve(Inspector(InspectorSettings.model_validate_json(sys.argv[1])))
