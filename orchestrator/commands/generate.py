"""`orchestrator generate`: continue a prompt."""

from collections.abc import Iterator

from torch import Tensor

from modules.data.encoding import CannotEncodeError
from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.configuration.commands import GenerateConfig
from orchestrator.configuration.schema import shown
from orchestrator.display.results import show_samples, stream_text
from orchestrator.errors import UserError


def run(config: GenerateConfig) -> None:
    """Load the model and show the continuations; a single one is streamed token by token."""
    trained = load_model(config.model.path, config.model.revision)
    prompt_ids = _prompt_ids(config, trained)
    tokens = sample(trained.model, prompt_ids, _sampling(config, trained))
    if config.num_sequences == 1:
        stream_text(config.prompt, _growing_text(trained, prompt_ids, _computed(trained, tokens)))
    else:
        steps = [step.tolist() for step in _computed(trained, tokens)]
        rows = [list(row) for row in zip(*steps, strict=True)]
        show_samples(config.prompt, [trained.tokenizer.decode_after(prompt_ids, row) for row in rows])


def _prompt_ids(config: GenerateConfig, trained: TrainedModel) -> list[int]:
    try:
        ids = trained.tokenizer.encode(config.prompt)
    except CannotEncodeError as error:
        raise UserError(f"prompt={shown(config.prompt)}: the model's tokenizer cannot encode it ({error})") from error
    if ids:
        return ids
    if config.prompt:
        raise UserError(f"prompt={shown(config.prompt)}: the model's tokenizer has no token for any of it")
    if not trained.end_ids:
        raise UserError("prompt='': the model has no end-of-text token to start from; give a text to continue")
    return [trained.end_ids[0]]


def _computed(trained: TrainedModel, tokens: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the tokens, computed with the precision of the model's training."""
    with trained.precision():
        yield from tokens


def _sampling(config: GenerateConfig, trained: TrainedModel) -> Sampling:
    return Sampling(
        num_sequences=config.num_sequences,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
        end_ids=trained.end_ids,
        context_length=trained.context_length,
        document_end_id=trained.tokenizer.end_of_text_id if trained.reads_documents_apart else None,
    )


def _growing_text(trained: TrainedModel, prompt_ids: list[int], tokens: Iterator[Tensor]) -> Iterator[str]:
    """Yield the text that each token adds; an incomplete character is held back until its last byte."""
    ids: list[int] = []
    shown_text = ""
    for step in tokens:
        ids.append(int(step[0]))
        text = trained.tokenizer.decode_after(prompt_ids, ids)
        if not text.endswith("\ufffd"):
            yield text[len(shown_text) :]
            shown_text = text
    yield trained.tokenizer.decode_after(prompt_ids, ids)[len(shown_text) :]
