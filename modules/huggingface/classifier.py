"""Classifiers in config.json: `transformers`' own for a causal one, a form that it refuses for a bidirectional one."""

import re
from collections.abc import Mapping
from typing import Any

from modules.huggingface.settings import Settings, not_computed
from modules.model_config import MOST_LABELS, ClassifierConfig

OWN_TYPE = "gpt_orchestrator_bidirectional_classifier"
"""The model_type of a classifier by the mean of all tokens: no class of `transformers` computes it, and one that opened
it as something else would answer wrongly."""
_CAUSAL_HEAD = re.compile("LMHeadModel|ForCausalLM")
_OTHER_HEAD = re.compile("(?!ForCausalLM|ForSequenceClassification)For[A-Z]|DoubleHeadsModel")


def to_settings(classifier: ClassifierConfig, family: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a classifier.

    Args:
        classifier: Its labels and attention.
        family: The settings of the same Transformer as a language model.
    """
    labels = dict(enumerate(classifier.labels))
    known = {
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
        "problem_type": "single_label_classification",
    }
    if classifier.attention == "causal":
        (name,) = family["architectures"]
        return {**family, "architectures": [_CAUSAL_HEAD.sub("ForSequenceClassification", name)], **known}
    # apart from its own, so that a class of `transformers` that is named by the user does not find them
    body = {name: value for name, value in family.items() if name != "architectures"}
    return {"architectures": ["BidirectionalClassifier"], "model_type": OWN_TYPE, "body": body, **known}


def with_body(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a bidirectional classifier with the settings of its Transformer among its own.

    Raises:
        InputError: It has none.
    """
    body = content.get("body")
    if not isinstance(body, Mapping):
        raise not_computed("body", body, "it must hold the settings of the Transformer; export the model again")
    return {**{name: value for name, value in content.items() if name != "body"}, **body}


def from_settings(settings: Settings, is_bidirectional: bool) -> ClassifierConfig | None:
    """Return the head of a classifier, which `architectures` tells from a language model; None for the latter.

    Raises:
        InputError: It is another head, or a classifier that gives no probabilities of labels.
        ValueError: The labels cannot be used.
    """
    if is_bidirectional:
        return ClassifierConfig(labels=_labels(settings), attention="bidirectional")
    names = settings.get("architectures", ())
    for name in [names] if isinstance(names, str) else names:
        if _OTHER_HEAD.search(name):
            raise not_computed("architectures", name, "only language models and ...ForSequenceClassification are known")
        if name.endswith("ForSequenceClassification"):
            settings.only("problem_type", "single_label_classification")
            return ClassifierConfig(labels=_labels(settings))
    return None


def _labels(settings: Settings) -> tuple[str, ...]:
    """Return the labels by number; `transformers` names those that have no name, and takes two if none are numbered."""
    names = settings.get("id2label")
    if names is None:
        # one more than can be is refused as all of them would be, however many these are
        count = min(settings.get("num_labels", 2), MOST_LABELS + 1)
        names = {number: f"LABEL_{number}" for number in range(count)}
    if not isinstance(names, Mapping):
        raise not_computed("id2label", names, "it must be an object")
    by_number = {int(number): str(name) for number, name in names.items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise not_computed("id2label", dict(names), "its keys must be the numbers from 0 on")
    if len(by_number) == 1:
        raise not_computed("id2label", dict(names), "a single label makes a regression, which is not computed here")
    return tuple(by_number[number] for number in range(len(by_number)))
