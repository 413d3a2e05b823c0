"""What is taken for a secret; that none reaches a file is shown where files are written."""

from orchestrator.cli.command import COMMANDS
from orchestrator.configuration import commands
from orchestrator.configuration.schema import leaves
from orchestrator.storage.redaction import is_secret_name, without_secrets


def test_no_setting_of_ours_is_taken_for_a_secret() -> None:
    """A setting of such a name is left out of a run's config.yaml and of what W&B is given."""
    kinds = [getattr(commands, command.config) for command in COMMANDS.values()]
    names = {name for kind in kinds for path, _ in leaves(kind) for name in path.split(".")}
    assert {"query_key_norm", "end_token"} < names
    assert [name for name in names if is_secret_name(name)] == []
    settings = {"model": {"query_key_norm": True}, "tokenizer": {"end_token": "</s>"}}
    assert without_secrets({**settings, "api_token": "x"}) == settings
