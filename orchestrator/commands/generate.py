"""`orchestrator generate`: continue a prompt."""

from collections.abc import Iterator

from torch import Tensor

from modules.generation import Sampling, sample
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.configuration.commands import GenerateConfig
from orchestrator.display.results import show_samples, stream_text


def run(config: GenerateConfig) -> None:
    """Load the model and show the continuations; a single one is streamed token by token."""
    trained = load_model(config.model.path)
    prompt_ids = trained.tokenizer.encode(config.prompt) or [trained.tokenizer.end_of_text_id]
    tokens = sample(trained.model, prompt_ids, _sampling(config, trained))
    if config.num_sequences == 1:
        stream_text(config.prompt, _growing_text(trained, tokens))
    else:
        steps = [step.tolist() for step in tokens]
        show_samples(config.prompt, [trained.tokenizer.decode(row) for row in zip(*steps, strict=True)])


def _sampling(config: GenerateConfig, trained: TrainedModel) -> Sampling:
    return Sampling(
        num_sequences=config.num_sequences,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
        stop_id=trained.tokenizer.end_of_text_id,
    )


def _growing_text(trained: TrainedModel, tokens: Iterator[Tensor]) -> Iterator[str]:
    """Yield the text that each token adds; an incomplete character is held back until its last byte."""
    ids: list[int] = []
    shown = ""
    for step in tokens:
        ids.append(int(step[0]))
        text = trained.tokenizer.decode(ids)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    yield trained.tokenizer.decode(ids)[len(shown) :]
