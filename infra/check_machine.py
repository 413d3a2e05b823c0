"""Report what a machine lacks before anything is installed. It runs on any Python 3."""

import sys


def main():
    """Print what is missing with the remedy; return their number."""
    if (3, 11) <= sys.version_info < (3, 13):
        return 0
    found = ".".join(map(str, sys.version_info[:2]))
    print(
        "error: Python 3.11 or 3.12 is needed, this is " + found + ": make setup PYTHON=/path/to/python3.11",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
