"""Nothing that signs a URL goes to the workers or into a run's folder, but where they read from."""

from orchestrator.configuration.commands import FinetuneConfig, PretrainConfig
from orchestrator.configuration.signatures import without_signatures

SIGNED = "https://store/x?X-Amz-Signature=0123456789abcdef"


def test_every_input_of_a_fine_tuning_loses_its_signature_but_the_model() -> None:
    config = FinetuneConfig.model_validate(
        {
            "model": {"path": SIGNED},
            "data": {"source": "files", "path": [SIGNED, "here.jsonl"], "val_path": [SIGNED], "test_path": [SIGNED]},
            "task": {"name": "dialogue", "chat_template": SIGNED},
        }
    )
    plain = without_signatures(config)
    assert plain.model.path == SIGNED
    assert plain.data.path == ("https://store/x?***", "here.jsonl")
    assert plain.data.val_path == plain.data.test_path == ("https://store/x?***",)
    assert getattr(plain.task, "chat_template", None) == "https://store/x?***"


def test_every_input_of_a_pretraining_loses_its_signature() -> None:
    config = PretrainConfig.model_validate(
        {"data": {"source": "files", "path": SIGNED}, "tokenizer": {"kind": "file", "path": SIGNED}}
    )
    plain = without_signatures(config)
    assert (plain.data.path, plain.tokenizer.path) == (("https://store/x?***",), "https://store/x?***")
    assert plain.training == config.training
