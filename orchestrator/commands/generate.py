"""`orchestrator generate`: continue a prompt, or a file of prompts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from modules.data.encoding import CannotEncodeError
from modules.data.prompts import FilePrompt, read_prompts
from modules.generation.continuations import BeamSettings, Continuation, Continuer, Prompt, numbered_prompts
from modules.generation.window import window_size
from orchestrator.artifacts.models import TrainedModel, load_model
from orchestrator.configuration.commands import GenerateConfig
from orchestrator.configuration.schema import shown
from orchestrator.display.progress import generate_progress
from orchestrator.display.results import show_samples, stream_text
from orchestrator.display.terminal import new_console, print_line, write_text
from orchestrator.errors import StorageError, UserError
from orchestrator.storage.input_files import find_files
from orchestrator.storage.new_file import NewFile

_MAX_MISTAKES = 20


def run(config: GenerateConfig) -> None:
    """Read the prompts, load the model and show or write the continuations; a single one is shown as it comes."""
    output = NewFile(config.output, "output=") if config.output else None
    texts = _texts(config)
    trained = load_model(config.model.path, config.model.revision, config.model.adapter, needs_head=True)
    trained = trained.prepared(config.precision, config.prepack)
    prompts = _prompts(config, trained, texts)
    continuer = _continuer(config, trained)
    if output:
        output.check_writable()
    with trained.precision():
        if config.prompts_file:
            _write(texts, _all_continued(continuer, prompts, config.batch_size), output)
        elif config.num_sequences == config.num_beams == 1:
            stream_text(config.prompt, continuer.stream(prompts[0]))
        else:
            show_samples(config.prompt, [found.text for found in continuer.batch(prompts)[0]])


def _texts(config: GenerateConfig) -> list[FilePrompt]:
    """Return the prompts with what a message calls them."""
    if config.prompts_file is None:
        return [FilePrompt(config.prompt, f"prompt={shown(config.prompt)}")]
    files = find_files([config.prompts_file])
    if len(files) > 1:
        raise UserError(f"prompts_file={shown(config.prompts_file)}: leads to {len(files)} files; name one of them")
    return read_prompts(files[0])


def _prompts(config: GenerateConfig, trained: TrainedModel, texts: Sequence[FilePrompt]) -> list[Prompt]:
    """Return the prompts as tokens, no more than the model sees at once.

    Raises:
        UserError: lists the prompts that the tokenizer or the model cannot take.
    """
    size = window_size(trained.model, trained.context_length)
    every_ids: list[list[int]] = []
    mistakes: list[str] = []
    num_long = 0
    for prompt in texts:
        try:
            ids = _ids(trained, prompt)
        except UserError as error:
            mistakes.append(str(error))
            continue
        num_long += len(ids) > size
        if len(ids) > size and config.long_prompt == "refuse":
            rule = f"has {len(ids):,} tokens, and the model sees {size:,} at once"
            mistakes.append(f"{prompt.location}: {rule}; shorten it, or take its end with long_prompt=cut")
        every_ids.append(ids[-size:])
    if mistakes:
        rest = [f"… and {len(mistakes) - _MAX_MISTAKES} more"] if len(mistakes) > _MAX_MISTAKES else []
        raise UserError("\n".join(mistakes[:_MAX_MISTAKES] + rest))
    if num_long:
        which = f"{num_long:,} of {len(texts):,} prompts have" if config.prompts_file else "the prompt has"
        _note(f"{which} more tokens than the model sees at once; the last {size:,} are used (long_prompt=cut)")
    return numbered_prompts(every_ids, config.num_sequences)


def _ids(trained: TrainedModel, prompt: FilePrompt) -> list[int]:
    try:
        ids, begin = trained.tokenizer.prompt_ids(prompt.text), trained.tokenizer.prompt_ids("")
    except CannotEncodeError as error:
        raise UserError(f"{prompt.location}: the model's tokenizer cannot encode it ({error})") from error
    if prompt.text and len(ids) == len(begin):
        raise UserError(f"{prompt.location}: the model's tokenizer has no token for any of it")
    if ids:
        return ids
    if not trained.end_ids:
        raise UserError(f"{prompt.location}: the model has no end-of-text token to start from; give a text to continue")
    return [trained.end_ids[0]]


def _continuer(config: GenerateConfig, trained: TrainedModel) -> Continuer:
    beams = BeamSettings(config.num_beams, config.length_penalty) if config.num_beams > 1 else None
    drawn = config.drawn(default_temperature=0.0 if beams else 1.0)
    sampling = trained.sampling(config.stop, num_sequences=config.num_sequences, **drawn)
    return Continuer(trained.model, trained.tokenizer, sampling, config.stop, beams)


def _all_continued(continuer: Continuer, prompts: Sequence[Prompt], batch_size: int) -> list[list[Continuation]]:
    """Return the continuations of each prompt, computed with those of similar length, the longest first."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number].ids))
    found: dict[int, list[Continuation]] = {}
    with generate_progress(len(prompts)) as progress:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            found |= zip(numbers, continuer.batch([prompts[number] for number in numbers]), strict=True)
            progress(len(found), sum(one.num_tokens for number in numbers for one in found[number]))
    return [found[number] for number in range(len(prompts))]


def _write(texts: Sequence[FilePrompt], found: Sequence[list[Continuation]], output: NewFile | None) -> None:
    rows = "".join(map(_row, texts, found))
    if output is None:
        write_text(new_console(), rows)
        return
    try:
        output.write(rows.encode())
    except (StorageError, UserError):
        write_text(new_console(), rows)  # what took long to compute is not lost with the store
        raise
    print_line(f"wrote {len(texts):,} rows to {output.url}")


def _row(prompt: FilePrompt, found: Sequence[Continuation]) -> str:
    """Return a prompt and its continuations as a line of JSON."""
    continuations = [{name: value for name, value in asdict(one).items() if value is not None} for one in found]
    return json.dumps({"prompt": prompt.text, "continuations": continuations}, ensure_ascii=False) + "\n"


def _note(line: str) -> None:
    """Print a line beside the texts, which may be read by a program."""
    print(f"note: {line}", file=sys.stderr)
