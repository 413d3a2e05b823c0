"""`orchestrator stop`: a submitted job saves and ends."""

from orchestrator.configuration.submission import StopConfig
from orchestrator.display.terminal import print_line
from orchestrator.submission.attempts import named
from orchestrator.submission.job_server import connect
from orchestrator.submission.report import show_end


def run(config: StopConfig) -> None:
    """Ask the job to stop, and wait until it has saved and ended."""
    server = connect("address", config.address, config.allow_insecure)
    job = named(server, config.name)
    if job.is_over:
        print_line(f"{job.id} is over already: {job.state}")
        return
    server.stop(job.id)
    print_line(f"{job.id} was asked to stop; it saves and ends (Ctrl-C leaves it to that)")
    show_end(server.wait(job.id))
