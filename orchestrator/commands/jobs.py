"""`orchestrator jobs`: what was submitted to a cluster."""

from orchestrator.configuration.submission import JobsConfig
from orchestrator.display.terminal import print_line
from orchestrator.submission.job_server import connect
from orchestrator.submission.report import show_jobs


def run(config: JobsConfig) -> None:
    """Show a table of the jobs, the newest last."""
    if jobs := connect("address", config.address, config.allow_insecure).jobs():
        show_jobs(jobs)
    else:
        print_line("no jobs: nothing was submitted to this cluster since it was started")
