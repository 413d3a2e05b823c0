"""The README.md of an exported model: what it is, what it was made from and how well it did, in plain words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import yaml

from modules.model_config import ModelConfig
from orchestrator import program_version
from orchestrator.artifacts.data_facts import DataFacts
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.checkpoints.card_data import data_rows, hub_names
from orchestrator.storage.redaction import redact

_MOST_LABELS = 100
_FIGURES = {
    "val/loss_clm": "held-out text: nats per token, predicting the next one",
    "val/perplexity": "held-out text: perplexity",
    "val/bits_per_byte": "held-out text: bits per byte",
    "val/loss_mlm": "held-out text: nats per masked token",
    "val/mlm_accuracy": "held-out text: share of masked tokens that are predicted",
    "val/macro_f1": "held-out examples: mean F1 of all labels",
    "val/accuracy": "held-out examples: share that is classified rightly",
    "val/loss_classification": "held-out examples: nats per example, by the weights of its label",
    "train/loss": "training loss: the weighted sum of the objectives",
    "train/loss_clm": "training loss: nats per token, predicting the next one",
    "train/loss_mlm": "training loss: nats per masked token",
    "train/loss_classification": "training loss: nats per example, by the weights of its label",
}
_PROMPT_TOKENS = 17
"""Most tokens of the prompt below: one for each letter, and one before them."""
_USE = """\
The lines for `transformers`; `folder` is where this file lies:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(prompt, max_new_tokens={num_tokens})[0]))
```

The same with the program that made it:

```sh
orchestrator generate model.path=. prompt="Once upon a time" max_new_tokens={num_tokens}
```"""
_CLASSIFY = """\
```sh
orchestrator predict model.path=. text="Once upon a time"
```"""
_CLASSIFY_WITH_TRANSFORMERS = """\
The lines for `transformers`; `folder` is where this file lies:

```python
from transformers import pipeline

folder = "."
classify = pipeline("text-classification", model=folder)
print(classify("Once upon a time", top_k=None))
```

The same with the program that made it:

"""
BIDIRECTIONAL = (
    "Every token attends to all others, and the label follows from the mean of them all. `transformers` has no class "
    "that computes this, so it refuses the folder, and so does what builds on it; the program that made it opens it."
)
"""What a user of a bidirectional classifier has to know."""


@dataclass(frozen=True)
class Card:
    """What a model card tells; what is not known is left out."""

    title: str
    step: int
    model: ModelConfig
    vocab_size: int
    num_parameters: int
    dtype: str
    is_rounded: bool
    """Whether the weights have less precision than those of the training, on which the figures were measured."""
    recipe: Mapping[str, Any]
    """What decided the weights, without secrets."""
    num_tokens: int
    """Tokens that the training has read up to this step."""
    data: DataFacts | None
    metrics: Mapping[str, float]
    """Figures after `step`; those that are not known here have no line."""
    license: str | None
    source_tokens: Mapping[str, int] = field(default_factory=dict)
    """`num_tokens` by the source of a mixture."""

    def text(self) -> str:
        """Return the whole file."""
        sections = {
            "Model": _table(_shape(self)),
            "Data": _table(data_rows(self.data, self.recipe, self.source_tokens) if self.data else {}),
            "Training": _table(_training(self)),
            "Figures": self._figures(),
            "Use": self._use(),
            "Versions": ", ".join(f"{name} {found}" for name, found in _versions()),
        }
        body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)
        return redact(f"---\n{self._front_matter()}---\n\n# {self.title}\n\n{self._summary()}\n\n{body}\n")

    def _front_matter(self) -> str:
        """Return the settings that the hub reads, as YAML."""
        known = {
            "license": self.license,
            "library_name": None if self._is_bidirectional else "transformers",
            "pipeline_tag": "text-classification" if self.model.classifier else "text-generation",
            "base_model": self.recipe.get("base_model", {}).get("hub"),
            "datasets": hub_names(self.data) if self.data else None,
        }
        return yaml.safe_dump({name: value for name, value in known.items() if value}, sort_keys=False)

    @property
    def _is_bidirectional(self) -> bool:
        return self.model.classifier is not None and self.model.classifier.attention == "bidirectional"

    def _use(self) -> str:
        if self.model.classifier is None:
            return _USE.format(num_tokens=min(50, max(1, self.model.max_positions - _PROMPT_TOKENS)))
        return f"{BIDIRECTIONAL}\n\n{_CLASSIFY}" if self._is_bidirectional else _CLASSIFY_WITH_TRANSFORMERS + _CLASSIFY

    def _summary(self) -> str:
        kind = "text classifier" if self.model.classifier else "language model"
        return (
            f"A {kind} of {self.num_parameters:,} parameters, trained by the run `{self.title}` of "
            f"gpt-orchestrator{self._base()}: the weights after step {self.step:,}."
        )

    def _base(self) -> str:
        """Return from which model the training went on; one that is not on the hub is known by its content alone."""
        base = self.recipe.get("base_model")
        if base is None:
            return ""
        if "hub" in base:
            return f", begun from the weights of {base['hub']} at commit {base['commit']}"
        return f", begun from the weights of another model (fingerprint `{fingerprint(base)}`)"

    def _known_figures(self) -> Iterator[tuple[str, str]]:
        yield from _FIGURES.items()
        for source in self.data.sources if self.data else ():
            for name, text in _FIGURES.items():
                group, _, rest = name.partition("/")
                yield f"{group}/{source}/{rest}", f"{text} ({source})"

    def _figures(self) -> str:
        rows = [(name, text) for name, text in self._known_figures() if math.isfinite(self.metrics.get(name, math.nan))]
        lines = [f"| {text} | {self.metrics[name]:.4g} | `{name}` |" for name, text in rows]
        rounded = f" Measured before the weights were rounded to {self.dtype}." if self.is_rounded else ""
        head = [f"After step {self.step:,}.{rounded}", "", "| figure | value | metric |", "|---|---|---|"]
        return "\n".join([*head, *lines]) if lines else ""


def _shape(card: Card) -> dict[str, str]:
    model = card.model
    shared = f", sharing {model.kv_heads} key and value heads" if model.kv_heads < model.num_heads else ""
    return {
        "family": {"gpt2": "GPT-2", "llama": "Llama"}[model.family],
        "parameters": f"{card.num_parameters:,}, as {card.dtype}",
        "layers": str(model.num_layers),
        "width": f"{model.hidden_dim}, and {model.feed_forward_dim} in the feed-forward blocks",
        "attention heads": f"{model.num_heads} of width {model.width_per_head}{shared}",
        "vocabulary": f"{card.vocab_size:,} tokens"
        + (", input and output sharing their weights" if model.tie_embeddings and not model.classifier else ""),
        "longest text": f"{model.max_positions:,} tokens",
        "labels": _listed(model.classifier.labels) if model.classifier else "",
    }


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_LABELS:,} more" if len(labels) > _MOST_LABELS else ""
    return ", ".join(f"`{label.replace('`', ' ')}`" for label in labels[:_MOST_LABELS]) + more


def _training(card: Card) -> dict[str, str]:
    recipe, training = card.recipe, card.recipe.get("training", {})
    rows = {
        "continued from": _base(recipe.get("base_model", {})),
        "objective": _phases(recipe.get("objective", {}).get("phases", ())),
        "task": _task(recipe.get("task", {})),
        "method": _method(recipe.get("model", {}).get("lora")),
    }
    if training:
        batch, length = training["global_batch_size"], training["sequence_length"]
        rows |= {
            "steps": f"{card.step:,} of {training['num_steps']:,}",
            "batch": f"{batch:,} sequences of {'at most ' if 'task' in recipe else ''}{length:,} tokens",
            "tokens seen": f"{card.num_tokens:,}",
            "precision": training["precision"],
            "attention": _attention(training),
        }
    optimizer = _optimizer(recipe["optimizer"]) if "optimizer" in recipe else ""
    return {**rows, "optimizer": optimizer, "seed": str(recipe.get("seed", ""))}


def _attention(training: Mapping[str, Any]) -> str:
    if training.get("attention_scope") != "document":
        return ""
    restart = training.get("position_scope") == "document"
    return "within each document" + (", whose positions are counted from 0" if restart else "")


def _base(identity: Mapping[str, Any]) -> str:
    """Return what identifies the model from which the run went on."""
    if "hub" in identity:
        return f"{identity['hub']}, commit {identity['commit']}"
    if "committed" in identity:
        return f"a model of this program, whose manifest has the digest {identity['committed']}"
    return ", ".join(f"{file} ({version})" for file, version in identity.get("files", ()))


def _task(settings: Mapping[str, Any]) -> str:
    shown = [f"{name} {value!r}" for name, value in settings.items() if name != "name" and value not in (None, [], "")]
    return f"{settings['name']}: {', '.join(shown)}" if settings else ""


def _method(lora: Mapping[str, Any] | None) -> str:
    if lora is None:
        return ""
    return f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}, on {', '.join(lora['target_layers'])}; merged"


def _phases(phases: Sequence[Mapping[str, Any]]) -> str:
    def told(phase: Mapping[str, Any]) -> str:
        names = {"clm": "next token", "mlm": "masked tokens"}
        weights = " and ".join(f"{names.get(name, name)} ({weight:g})" for name, weight in phase["weights"].items())
        if mixed := phase.get("data_weights"):
            weights += f" on {', '.join(f'{name} ({weight:g})' for name, weight in mixed.items())}"
        length = f"{phase['steps']:,} steps" if phase.get("steps") else f"{100 * phase['fraction']:g} % of the steps"
        return weights if len(phases) == 1 else f"{length}: {weights}"

    return "; then ".join(map(told, phases))


def _optimizer(settings: Mapping[str, Any]) -> str:
    unused = {"name", *(() if settings.get("schedule") == "wsd" else ("decay_fraction",))}
    shown = [f"{name} {value}" for name, value in settings.items() if name not in unused and value is not None]
    return f"{settings['name']}: {', '.join(shown)}"


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _cell(text: str) -> str:
    """Return a text that neither ends a table's cell nor its row."""
    return " ".join(text.replace("|", "\\|").split())


def _versions() -> list[tuple[str, str]]:
    return [("gpt-orchestrator", program_version()), *((name, version(name)) for name in ("torch", "safetensors"))]
