"""Says what a machine lacks before anything is installed. It runs on any Python 3."""

import os
import shutil
import sys
import sysconfig


def main():
    """Print each thing that is missing with the command that brings it; return how many there are."""
    missing = []
    if not (3, 11) <= sys.version_info < (3, 13):
        found = ".".join(map(str, sys.version_info[:2]))
        missing.append(f"Python 3.11 or 3.12 is needed, this is {found}: make setup PYTHON=/path/to/python3.11")
    if not shutil.which(os.environ.get("CXX", "g++")):
        missing.append(
            "g++ is needed, DeepSpeed compiles its communication on CPU with it: "
            "apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)"
        )
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append("Python's headers are needed to compile: apt-get install python3-dev, dnf install python3-devel")
    for line in missing:
        print("error: " + line, file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
