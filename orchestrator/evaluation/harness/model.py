"""A model of ours as lm-evaluation-harness sees it.

What it gives is what lm-eval's own `hf` model gives for the same weights: the same tokens are put before and after, the
same texts are cut on the left, and probabilities and greedy texts agree.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from modules.chat_template import ChatTemplate
from modules.data.pretrained_tokenizer import named_tokens
from modules.data.tokenizer import Tokenizer
from modules.errors import InputError
from modules.generation.continuations import Continuer, Prompt, numbered_prompts
from modules.generation.sampling import Sampling
from modules.scoring import Likelihood, TargetTokens, likelihoods
from orchestrator.artifacts.models import TrainedModel
from orchestrator.evaluation.harness.generating import Generation, generation

Progress = Callable[[int, int], None]
"""Takes the number of requests that are done, and of all of them."""
_CONTINUED = "CONTINUED_HERE "
_SEED = 1234
"""As lm-eval's own seed of torch."""


class HarnessModel(TemplateLM):
    """A trained model that answers lm-eval's three kinds of requests."""

    def __init__(
        self,
        trained: TrainedModel,
        *,
        batch_size: int,
        max_length: int,
        template: ChatTemplate | None,
        progress: Progress,
    ) -> None:
        """Take a model.

        Args:
            trained: A causal language model with its tokenizer.
            batch_size: Sequences that are computed at once.
            max_length: Tokens that it sees at once; older ones are cut off.
            template: Writes the questions, if that is asked for.
            progress: Called after each batch.
        """
        super().__init__()
        self._trained, self._tokenizer, self._model = trained, trained.tokenizer, trained.model
        self._batch_size, self.max_length, self._template = batch_size, max_length, template
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        number = self._named_id("eos_token")
        return self._tokenizer.end_of_text_id if number is None else number

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that stands alone: the one that begins a text, else the one that ends it."""
        number = self._named_id("bos_token")
        return self.eot_token_id if number is None else number

    @property
    def tokenizer_name(self) -> str:
        return self._trained.tokenizer_path

    @cached_property
    def begin_ids(self) -> list[int]:
        """What the tokenizer puts before each text."""
        return self._tokenizer.prompt_ids("")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text as `transformers` gives them: the name of a control token is that token."""
        ids = self._tokenizer.control_encoder.encode(string)
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self._prefix)
        return [*self.begin_ids, *ids] if add_special_tokens else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation; without a generation prompt it ends where the last message goes on."""
        assert self._template is not None
        if add_generation_prompt:
            return self._template.render(chat_history, add_generation_prompt=True)
        # the template may put an end of turn after the last message, or strip it: a mark shows where it ended
        *before, last = chat_history
        text = self._template.render([*before, {**last, "content": last["content"] + _CONTINUED}])
        stop = text.rindex(_CONTINUED.strip())
        return text[:stop] if text[stop:].startswith(_CONTINUED) else text[:stop].rstrip()

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation after its context, and whether it is the greedy text."""
        return super().loglikelihood(list(requests), disable_tqdm=True)  # the command shows its own progress

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, each cut into windows of the tokens that the model sees at once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        numbers = []
        for (text,) in (request.args for request in requests):
            found = list(get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1))
            windows += [(None, *make_disjoint_window(window)) for window in found]
            numbers.append(len(found))
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(number)) for number in numbers]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and whether it is the greedy text, of each continuation after its context."""
        numbers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        wanted = [self._target_tokens(context, continuation) for _, context, continuation in requests]
        for number, one in enumerate(wanted):
            numbers[one.input_ids].append(number)
        inputs = sorted(numbers, key=len, reverse=True)
        found: dict[int, Likelihood] = {}
        for start in range(0, len(inputs), self._batch_size):
            batch = [number for ids in inputs[start : start + self._batch_size] for number in numbers[ids]]
            found |= zip(batch, likelihoods(self._model, [wanted[number] for number in batch]), strict=True)
            self._progress(len(found), len(wanted))
        return [found[number] for number in range(len(wanted))]

    def _target_tokens(self, context: list[int], continuation: list[int]) -> TargetTokens:
        if not context or not continuation:
            what = "context" if not context else "continuation"
            raise InputError(f"a task's {what} has no tokens, so it has no likelihood; correct its text or its choices")
        if len(continuation) > self.max_length:
            rule = f"the model sees {self.max_length:,} at once"
            raise InputError(f"a task's continuation has {len(continuation):,} tokens, and {rule}; leave it out")
        return TargetTokens(tuple([*context, *continuation][-(self.max_length + 1) : -1]), tuple(continuation))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the text that continues each request, up to a stop string of its task."""
        groups: dict[str, list[int]] = defaultdict(list)
        asked: list[Any] = [request.args for request in requests]
        for number, (_, settings) in enumerate(asked):
            groups[repr(settings)].append(number)
        found: dict[int, str] = {}
        for numbers in groups.values():
            wanted = generation(asked[numbers[0]][1], self._trained.files)
            ids = [self._prompt_ids(asked[number][0], wanted) for number in numbers]
            prompts = dict(zip(numbers, numbered_prompts(ids, 1), strict=True))
            for batch, texts in self._continued(prompts, wanted):
                found |= zip(batch, texts, strict=True)
                self._progress(len(found), len(requests))
        return [found[number] for number in range(len(requests))]

    def _prompt_ids(self, text: str, wanted: Generation) -> list[int]:
        room = self.max_length - wanted.max_new_tokens
        if room <= 0:
            raise InputError(
                f"max_gen_toks={wanted.max_new_tokens} of a task: the model sees {self.max_length:,} tokens at once, "
                "and the question needs room, too; lower it in the task"
            )
        return self.tok_encode(text)[-room:] or [self.prefix_token_id]

    def _continued(self, prompts: Mapping[int, Prompt], wanted: Generation) -> Iterator[tuple[list[int], list[str]]]:
        """Yield the numbers of a batch of prompts and their continuations, the longest prompts first."""
        end = self._tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stop = [*wanted.until, *([end] if end else [])]
        ends = self._trained.ends_at(stop)
        sampling = Sampling(
            max_new_tokens=wanted.max_new_tokens,
            end_ids=ends,
            context_length=self.max_length,
            seed=_SEED,
            **wanted.sampling,
        )
        tokenizer: Any = _DecodedAlone(self._tokenizer)
        continuer = Continuer(self._model, tokenizer, sampling, stop, wanted.beams)
        order = sorted(prompts, key=lambda number: -len(prompts[number].ids))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            yield batch, [one.text for (one,) in continuer.batch([prompts[number] for number in batch])]

    @cached_property
    def _prefix(self) -> str:
        return self._tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)

    def _named_id(self, role: str) -> int | None:
        return self._tokenizer.id_of(self._named.get(role, ""))

    @cached_property
    def _named(self) -> dict[str, str]:
        return named_tokens(self._trained.files, "the model")


class _DecodedAlone:
    """A tokenizer that decodes continuations without what they follow, as lm-eval does.

    Tokenizers that write a space into the first token of each word lose the one before the continuation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text_stream(self, before: Sequence[int]) -> Any:
        return self._tokenizer.text_stream(())

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)
