"""Messages about mistakes: path, value, rule and remedy, for all mistakes at once."""

import re
from typing import Any

import pytest

from modules.tasks.settings import DialogueConfig
from orchestrator.configuration.batch import BatchConfig
from orchestrator.configuration.commands import (
    CompareConfig,
    EvaluateConfig,
    FinetuneConfig,
    GenerateConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from orchestrator.configuration.decoding import ContinuationConfig
from orchestrator.configuration.faults import FaultsConfig
from orchestrator.configuration.groups import FinetuneSettings
from orchestrator.configuration.mistakes import mistakes_in, validated
from orchestrator.configuration.rules import RULES_BETWEEN_GROUPS
from orchestrator.configuration.schema import leaves
from orchestrator.errors import ConfigError

CHARACTERS = r"/ \ # ? % : or a control character"

CASES: list[tuple[dict[str, Any], str]] = [
    ({"model": {"num_layer": 3}}, "model.num_layer=3: unknown; did you mean model.num_layers?"),
    ({"num_layers": 3}, "num_layers=3: unknown; did you mean model.num_layers?"),
    ({"stategy": {"name": "ddp"}}, "stategy.name=ddp: unknown; did you mean strategy?"),
    ({"modle": {"x": 3}}, "modle.x=3: unknown; did you mean model?"),
    ({"training": {"num_steps": "abc"}}, "training.num_steps=abc: must be a whole number"),
    ({"training": {"num_steps": 1.5}}, "training.num_steps=1.5: must be a whole number"),
    ({"training": {"num_steps": 0}}, "training.num_steps=0: must be above 0"),
    ({"training": {"compile": "maybe"}}, "training.compile=maybe: must be true or false"),
    (
        {"training": {"compile": True, "activation_checkpointing": "selective"}},
        "training.activation_checkpointing=selective: with compile=true torch.compile chooses what is cheap enough to "
        "be computed again; set none, or blocks",
    ),
    (
        {"training": {"tf32": True, "precision": "bf16"}},
        "training.tf32=true: with precision=bf16 no matrices are multiplied in float32; leave it out, or set "
        "precision=32",
    ),
    (
        {"training": {"position_scope": "document"}},
        "training.position_scope=document: attention crosses documents, and would see several tokens at one position; "
        "set attention_scope=document, too",
    ),
    ({"training": 5}, "training=5: must be fields and values, {field:value}"),
    ({"training": {"precision": 8}}, "training.precision=8: must be one of 32, bf16, 16, bf16-true, 16-true"),
    ({"data": {"val_fraction": 2}}, "data.val_fraction=2: must be below 1"),
    ({"data": {"source": "fils"}}, "data.source=fils: must be one of stdlib, files, huggingface; did you mean files?"),
    (
        {"data": {"source": "files"}},
        "data.source=files: needs data.path: name a file, a folder, a glob or a data set",
    ),
    ({"model": {"num_heads": 5}}, "model.num_heads=5: does not divide hidden_dim 128; nearest: 2 or 4"),
    (
        {"model": {"classifier": {"labels": ["a", "b"]}}},
        "model.classifier: follows from the task that a model is fine-tuned for; leave it out",
    ),
    ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate=nan: must be a finite number"),
    (
        {"optimizer": {"momentum": 0.9}},
        "optimizer.momentum=0.9: belongs to optimizer=muon; leave it out, or choose that",
    ),
    (
        {"optimizer": {"matrix_learning_rate": 0.01}},
        "optimizer.matrix_learning_rate=0.01: belongs to optimizer=muon; leave it out, or choose that",
    ),
    (
        {"optimizer": {"name": "muon"}, "model": {"lora": {}}},
        "optimizer.name=muon: orthogonalises the updates of whole matrices, and method=lora trains factors of them; "
        "choose optimizer=adamw",
    ),
    ({"optimizer": {"name": "moun"}}, "optimizer.name=moun: must be one of adamw, muon; did you mean muon?"),
    (
        {"optimizer": {"name": "muon"}, "strategy": {"name": "zero2", "deepspeed": {"gradient_clipping": 1.0}}},
        "strategy.deepspeed.gradient_clipping: would clip the matrices of optimizer.name=muon; leave it out, or choose "
        "optimizer=adamw",
    ),
    *[
        (
            {
                "optimizer": {"name": "muon"},
                "strategy": {
                    "name": "zero3_offload",
                    "deepspeed": {"zero_optimization": {"offload_optimizer": {name: value}}},
                },
            },
            f"strategy.deepspeed.zero_optimization.offload_optimizer.{shown}: {rule} optimizer.name=muon; leave it "
            "out, or choose optimizer=adamw",
        )
        for name, value, shown, rule in [
            ("ratio", 0.5, "ratio", "lets AdamW take a part of the place of"),
            ("super_offload", True, "super_offload", "replaces"),
            ("device", "nvme", "device=nvme", "knows only the moments of AdamW, not"),
        ]
    ],
    ({"optimizer": {"betas": [0.9, 0.9, 0.9]}}, "optimizer.betas=[0.9,0.9,0.9]: must have 2 or fewer values"),
    ({"cluster": {"num_workers": "abc"}}, "cluster.num_workers=abc: must be a whole number"),
    ({"cluster": {"num_workers": 0}}, "cluster.num_workers=0: must be above 0"),
    ({"cluster": {"name": "ray", "num_workers": [1, "x"]}}, "cluster.num_workers.1=x: must be a whole number"),
    (
        {"cluster": {"num_workers": [1, 2]}},
        "cluster.num_workers=[1,2]: [min,max] needs cluster=ray; cluster=local takes one number",
    ),
    ({"objective": {"phases": []}}, "objective.phases=[]: must have 1 or more values"),
    (
        {"objective": {"phases": [{"weights": {"clmm": 1}, "fraction": 1}]}},
        "objective.phases.0.weights.clmm=1: unknown; the names are clm, mlm; did you mean clm?",
    ),
    ({"objective": {"phases": [{"weights": {"clm": 1}}]}}, "objective.phases.0: give either fraction or steps"),
    (
        {"run": {"name": "a/b/c"}},
        "run.name=a/b/c: must begin with a letter or digit and hold only letters, digits, dots, dashes and underscores",
    ),
    ({"run": {"name": "n" * 300}}, f"run.name={'n' * 79}…: has 300 characters, and may have 128"),
    *[
        ({"tracking": {name: "a/b"}}, f"tracking.{name}=a/b: must not contain '/', nor any other of {CHARACTERS}")
        for name in ("project", "entity")
    ],
    *[({"tracking": {name: ""}}, f"tracking.{name}='': must not be empty") for name in ("project", "entity", "group")],
    ({"tracking": {"tags": [""]}}, "tracking.tags.0='': must not be empty"),
    ({"tracking": {"tags": ["t" * 70]}}, f"tracking.tags.0={'t' * 70}: must have 64 or fewer characters"),
    ({"tracking": {"group": "ü" * 129}}, f"tracking.group={'ü' * 79}…: must have 128 or fewer characters"),
]


@pytest.mark.parametrize(("raw", "line"), CASES, ids=[line.partition(":")[0] for _, line in CASES])
def test_a_mistake_is_reported_with_path_value_rule_and_remedy(raw: dict[str, Any], line: str) -> None:
    assert mistakes_in(raw, PretrainConfig) == [line]


def test_all_mistakes_are_reported_at_once() -> None:
    raw = {"model": {"num_layer": 3, "num_heads": 5}, "training": {"num_steps": 0}, "data": {"val_fraction": 2}}
    subjects = {line.partition(":")[0] for line in mistakes_in(raw, PretrainConfig)}
    assert subjects == {"model.num_layer=3", "model.num_heads=5", "training.num_steps=0", "data.val_fraction=2"}


def test_rules_between_groups_are_reported_beside_unknown_keys_and_mistakes_elsewhere() -> None:
    raw = {
        "model": {"nope": 1},
        "data": {"source": "files"},
        "training": {"global_batch_size": 10, "sequence_length": 999},
        "cluster": {"num_workers": 3},
    }
    text = "\n".join(mistakes_in(raw, PretrainConfig))
    assert "training.global_batch_size=10: not divisible by 3 workers; nearest: 9 or 12" in text
    assert "training.sequence_length=999: longer than model.max_positions (256)" in text
    assert "strategy=single" in text
    assert "model.nope=1" in text


def test_rules_between_groups_without_mistakes_are_reported_beside_mistakes_in_other_groups() -> None:
    raw = {"model": {"num_heads": 3}, "training": {"global_batch_size": 7, "micro_batch_size": 2}}
    text = "\n".join(mistakes_in(raw, PretrainConfig))
    assert "model.num_heads=3: does not divide" in text
    assert "training.global_batch_size=7: not divisible by 1 workers x micro_batch_size 2; nearest: 6 or 8" in text
    assert "sequence_length" not in text


@pytest.mark.parametrize(("groups", "rule"), RULES_BETWEEN_GROUPS)
def test_a_rule_between_groups_reads_no_others(groups: frozenset[str], rule: Any) -> None:
    read = set()
    prompts = {"prompt": "a", "prompts_file": "b.txt", "output": "c.jsonl"}
    every_kind = (
        PretrainConfig(faults=FaultsConfig(kind="kill_rank", at_step=1)),
        ContinuationConfig(**prompts, num_beams=2, num_sequences=3, length_penalty=2),
        FinetuneConfig(task=DialogueConfig(), finetune=FinetuneSettings(metric="val/accuracy")),
        PrepareConfig(task=DialogueConfig()),
        EvaluateConfig.model_validate({"model": {"path": "x"}, "harness": {"tasks": ["x"]}}),
        PredictConfig.model_validate({"model": {"path": "x"}, "output": "x.jsonl", "pair": "b"}),
        CompareConfig.model_validate({"model": {"path": "x"}, "task": {"name": "dialogue"}}),
        BatchConfig.model_validate({"run": {"name": "x"}, "step": 1}),
    )
    everything = next(config for config in every_kind if groups <= set(type(config).model_fields))

    class Spy:
        model_fields = type(everything).model_fields

        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(everything, name)

    rule(Spy())
    assert read <= groups | {"task"}  # what is not read says which commands have the rule
    assert read


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"num_beams": 4, "temperature": 0, "num_sequences": 4, "length_penalty": -1.5}, []),
        ({"prompts_file": "s3://bucket/A.TXT.gz", "output": "s3://bucket/b.jsonl"}, []),
        ({"prompts_file": "https://host/a.jsonl?sig=b.csv"}, []),
        (
            {"num_beams": 4, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "num_sequences": 9},
            [f"{name}: beam search (num_beams=4) draws nothing" for name in ("temperature=0.7", "top_k=5")]
            + [f"{name}: beam search (num_beams=4) draws nothing" for name in ("top_p=0.9", "min_p=0.0")]
            + ["num_sequences=9: beam search finds no more than its num_beams=4"],
        ),
        ({"length_penalty": 2}, ["length_penalty=2: belongs to beam search"]),
        ({"prompt": "a", "prompts_file": "a.csv"}, ["prompt=a: prompts_file has", "prompts_file=a.csv: must end in"]),
        ({"output": "a.txt"}, ["output=a.txt: belongs to prompts_file", "output=a.txt: must end in .jsonl"]),
        ({"stop": ["a", ""], "length_penalty": 2}, ["stop=[a,'']: holds an empty text", "length_penalty=2: belongs"]),
        ({"num_beams": "x", "temperature": 1}, ["num_beams=x: must be a whole number"]),
        ({"prompts_file": ["a"], "output": "b.jsonl"}, ["prompts_file=[a]: must be text"]),
        ({"repetition_penalty": 0}, ["repetition_penalty=0: must be above 0"]),
    ],
    ids=str,
)
def test_settings_of_generate_that_do_not_go_together_are_reported_at_once(
    fields: dict[str, Any], lines: list[str]
) -> None:
    found = mistakes_in({"model": {"path": "x"}, **fields}, GenerateConfig)
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))
    missing = mistakes_in({"model": {"path": "???"}, **fields}, GenerateConfig)
    assert missing[0].startswith("model.path: must be given")
    assert missing[1:] == found


def test_earlier_mistakes_are_reported_first() -> None:
    with pytest.raises(ConfigError, match=r"^first\ntraining\.num_steps=0: must be above 0$"):
        validated({"training": {"num_steps": 0}}, PretrainConfig, earlier=["first"])


def test_what_must_be_given_is_reported_with_its_explanation() -> None:
    for kind in (EvaluateConfig, GenerateConfig):
        (line,) = mistakes_in({"model": {"path": "???"}}, kind)
        assert line.startswith("model.path: must be given, as model.path=VALUE (A model directory")


def test_credentials_in_a_url_are_struck_out() -> None:
    (line,) = mistakes_in({"data": {"split": "s3://KEY:SECRET@bucket/x"}}, PretrainConfig)
    assert "KEY" not in line
    assert "SECRET" not in line


def misspelt(word: str) -> list[str]:
    """Return the word with two letters swapped, one dropped and one doubled, in its middle."""
    at = len(word) // 2
    swapped = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    return [swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]]


@pytest.mark.parametrize("group", [name for name in PretrainConfig.model_fields if name != "faults"])
def test_misspelt_group_or_field_is_recognised(group: str) -> None:
    keys = [key for key, _ in leaves(PretrainConfig) if key.startswith(f"{group}.") and key.count(".") == 1]
    for field in (key.partition(".")[2] for key in keys):
        asked = {(group, word): f"{group}.{field}" for word in misspelt(field) if word != field}
        asked |= {(word, "x"): group for word in misspelt(group)}
        for (first, second), meant in asked.items():
            needed = {"method": "grid"} if first == "sweep" else {}
            (line,) = mistakes_in({first: {**needed, second: 3}}, PretrainConfig)
            assert re.match(rf"{first}.{second}=3: unknown; did you mean {re.escape(meant)}( or [\w.]+)?\?", line), line
