"""`orchestrator logs`: what a submitted job has printed."""

from orchestrator.configuration.submission import LogsConfig
from orchestrator.display.terminal import new_console, write_text
from orchestrator.submission.attempts import named
from orchestrator.submission.job_server import connect
from orchestrator.submission.report import follow


def run(config: LogsConfig) -> None:
    """Print the log of a job; with `follow` until it ends, and exit with its exit code."""
    server = connect("address", config.address, config.allow_insecure)
    job = named(server, config.name)
    if config.follow:
        follow(server, job.id)
    else:
        write_text(new_console(), server.log(job.id))
