"""`orchestrator explain`: what a model looks at in a prompt, and what it expects next."""

import re
from hashlib import sha256

from modules.data.encoding import CannotEncodeError
from modules.explanation import Explanation, explain
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.artifacts.own_folder import own_folder, put
from orchestrator.artifacts.staging import staging_folder
from orchestrator.configuration.commands import ExplainConfig
from orchestrator.configuration.schema import shown
from orchestrator.display.explanation import ShownExplanation, explanation_page, layer_picture, show_explanation
from orchestrator.display.terminal import print_line
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact, without_query
from orchestrator.storage.store import Storage

_KIND = "explanation"
_PAGE = "explanation.html"


def run(config: ExplainConfig) -> None:
    """Show the explanation, and write it as a page and as a picture of each layer."""
    storage, name = own_folder(config.storage.root, config.to, f"explanations/{_name(config)}", _KIND)
    trained = load_model(config.model.path, config.model.revision, config.model.adapter, needs_head=True)
    ids = _prompt_ids(config, trained)
    with trained.precision():
        explanation = explain(trained.model, ids, config.num_likeliest)
    to_show = _readable(config, trained, ids, explanation)
    _write(storage, name, to_show)
    show_explanation(to_show)
    print_line(f"page: {storage.url(f'{name}/{_PAGE}')} (beside it a PNG of each layer, its heads from left to right)")


def _name(config: ExplainConfig) -> str:
    """Return a name for the explanation of this prompt by this model."""
    path = without_query(config.model.path).rstrip("/")
    words = [word for word in path.split("/") if word not in ("", "model")]
    last = re.sub(r"[^\w.-]", "-", redact(words[-1]) if words else "") or "model"
    asked = "\n".join([path, str(config.model.revision), config.prompt])
    return f"{last}-{sha256(asked.encode()).hexdigest()[:8]}"


def _prompt_ids(config: ExplainConfig, trained: TrainedModel) -> list[int]:
    try:
        ids = trained.tokenizer.prompt_ids(config.prompt)
    except CannotEncodeError as error:
        raise UserError(f"prompt={shown(config.prompt)}: the model's tokenizer cannot encode it ({error})") from error
    if not ids:
        raise UserError(f"prompt={shown(config.prompt)}: the model's tokenizer has no token for any of it; give a text")
    longest, why = min(
        (config.max_tokens, "max_tokens, since the page grows with its square"),
        (trained.model.config.max_positions, "the model's positions"),
    )
    if len(ids) > longest:
        raise UserError(f"prompt: has {len(ids)} tokens, more than {longest} ({why}); give a shorter one")
    return ids


def _readable(
    config: ExplainConfig, trained: TrainedModel, ids: list[int], explanation: Explanation
) -> ShownExplanation:
    likeliest = [
        [(_text(trained, number), probability) for number, probability in zip(numbers, probabilities, strict=True)]
        for numbers, probabilities in zip(
            explanation.likeliest.tolist(), explanation.probabilities.tolist(), strict=True
        )
    ]
    about = f"{redact(config.model.path)}, {len(ids)} tokens, {len(explanation.attention)} layers"
    tokens = [_text(trained, number) for number in ids]
    return ShownExplanation(about, tokens, explanation.attention.numpy(), likeliest)


def _text(trained: TrainedModel, number: int) -> str:
    """Return a token's text, or its name if it is no text alone, as with part of a letter."""
    text = trained.tokenizer.decode([number], skip_special_tokens=False)
    return text if text and "\ufffd" not in text else trained.tokenizer.token_of(number) or f"token {number}"


def _write(storage: Storage, name: str, to_show: ShownExplanation) -> None:
    with staging_folder(storage, name) as folder:
        (folder / _PAGE).write_text(explanation_page(to_show), encoding="utf-8")
        for layer, attention in enumerate(to_show.attention):
            (folder / f"layer_{layer:02d}.png").write_bytes(layer_picture(attention))
        put(storage, folder, name, _KIND)
