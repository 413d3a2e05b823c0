"""Requests as `orchestrator submit` composes them."""

from orchestrator.cli.flags import read_flags
from orchestrator.cli.session import Composer, hydra_of
from orchestrator.configuration.submission import SubmitConfig, SubmitSettings
from orchestrator.submission.request import Request, requested

ROOT = "storage.root=s3://bucket/outputs"


def request(command: str, *overrides: str, multirun: bool = False) -> Request:
    flags = read_flags("submit", [command])
    config = SubmitConfig(command=command, overrides=overrides, submit=SubmitSettings(multirun=multirun))
    with hydra_of("submit", flags) as hydra:
        return requested(config, Composer(hydra, flags))
