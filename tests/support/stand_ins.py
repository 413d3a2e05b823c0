"""Stand-ins for the commands of Slurm and Ray, for scripts that are run without either.

Each records its arguments and does the least that a script needs of it. `sbatch` refuses lines that it does not know.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol", "scancel", "hostname", "ray", "torchrun", "orchestrator")
SBATCH_OPTIONS = (
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive", "time"),
    *("output", "open-mode", "signal", "requeue"),
)
"""Those of Slurm's manual (sbatch, 24.11) that our scripts use, so that a misspelt one is found."""
_SCRIPT = """#!{python} -IS
import json, os, signal, subprocess, sys, time
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({record!r}, "a") as file:
    file.write(json.dumps([name, words]) + "\\n")
if name == "hostname":
    print("10.0.0.7 192.168.0.7 ")
elif name == "sbatch":
    lines = [line.split()[1] for line in open(words[0]) if line.startswith("#SBATCH")]
    unknown = [line for line in lines if line.removeprefix("--").partition("=")[0] not in {options!r}]
    if unknown:
        sys.exit(f"sbatch: unrecognized option {{unknown[0]}}")
    os.execvp("bash", ["bash", *words])
elif name == "srun":
    command = next(number for number, word in enumerate(words) if not word.startswith("-"))
    os.execvp(words[command], words[command:])
elif name == "ray" and words[0] == "symmetric-run":
    sys.exit(subprocess.run(words[words.index("--") + 1 :]).returncode)
elif name == "torchrun":
    with open({process!r}, "w") as file:
        file.write(str(os.getpid()))
    os.execvp("orchestrator", words[words.index("-m") + 1 :])
elif name == "scancel":
    os.kill(int(open({process!r}).read()), signal.SIGTERM)
elif name == "orchestrator":
    if "END" in os.environ:
        sys.exit(int(os.environ["END"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("training", flush=True)
    time.sleep(60)
"""


class StandIns:
    """A folder of stand-ins, and what they have recorded."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._record = folder, folder / "record"
        text = _SCRIPT.format(
            python=sys.executable, record=str(self._record), process=str(folder / "process"), options=SBATCH_OPTIONS
        )
        (folder / "bin").mkdir()
        for name in NAMES:
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, script: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
        """Submit a script as a job of two nodes; the process is the script itself."""
        own = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "64"}
        path = f"{self._folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["sbatch", str(script), *words],
            env={**os.environ, **own, "PATH": path, "ENVIRONMENT": str(self._folder), **variables},
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def calls(self, name: str) -> list[list[str]]:
        """Return the arguments of each call of a stand-in."""
        calls = [json.loads(line) for line in self._record.read_text().splitlines()]
        return [words for called, words in calls if called == name]
