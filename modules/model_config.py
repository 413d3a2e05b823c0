"""The shape of the Transformer, as a frozen configuration."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modules.config import Config, Derived, Identity, Input, LaterIdentity, Length, Small, Width, divisors

ALL_LINEAR = "all-linear"
"""Names all linear layers of a model's blocks."""

Positive = Annotated[float, Field(gt=0, le=1e12)]


class RopeScaling(Config):
    """How rotary positions are stretched beyond the length of a first training."""

    kind: Identity[Literal["linear", "llama3"]]
    """`linear` divides every frequency; `llama3` the low ones alone."""
    factor: Identity[Annotated[float, Field(ge=1, le=1e6)]]
    """Divides the frequencies."""
    low_freq_factor: Identity[Positive] = 1.0
    """`llama3`: frequencies of fewer than this many turns in the first length are divided."""
    high_freq_factor: Identity[Positive] = 4.0
    """`llama3`: frequencies of more than this many turns in the first length stay; those between change smoothly."""
    original_max_positions: Identity[Length] = 8192
    """`llama3`: the length of the first training in tokens."""

    @model_validator(mode="after")
    def _factors_are_in_order(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor:g} is not above low_freq_factor {self.low_freq_factor:g}"
            )
        return self


MOST_LABELS = 4096
_VOCAB_MULTIPLE = 64


class ClassifierConfig(Config):
    """A model that tells which of several labels a text has, instead of which token comes next."""

    labels: Identity[Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_LABELS)]]
    """Names of the classes, by their numbers; their number is squared in the confusion matrix."""
    attention: Identity[Literal["causal", "bidirectional"]] = "causal"
    """`causal` classifies by the hidden state of a text's last token, `bidirectional` by the mean over its tokens."""

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        counts = Counter(self.labels)
        twice = [label for label, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"label {twice[0]!r} is named {counts[twice[0]]} times; labels must differ")
        return self


def ends_with(path: str, target: str) -> bool:
    """Return whether a name is the end of a layer's path, as PEFT reads its `target_modules`."""
    return f".{path}".endswith(f".{target}")


class LoraConfig(Config):
    """Adapters of low rank beside linear layers, which are frozen (Hu et al. 2021, arXiv 2106.09685)."""

    rank: Identity[Annotated[int, Field(gt=0, le=2**16)]] = 16
    """Inner width of an adapter."""
    alpha: Identity[Positive] = 32.0
    """What an adapter adds is multiplied by alpha / rank."""
    dropout: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Dropout probability of an adapter's input."""
    target_layers: Identity[Annotated[tuple[str, ...], Field(min_length=1)]] = (ALL_LINEAR,)
    """Adapted layers by their names in transformers, such as q_proj or c_attn; `all-linear` for all of the blocks."""
    trained_tokens: Identity[tuple[Annotated[int, Field(ge=0, lt=2**24)], ...]] = ()
    """Numbers of tokens whose rows in the vocabulary are trained, too; those of new tokens always are."""

    @property
    def scale(self) -> float:
        """What the product of an adapter's weights is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, path: str) -> bool:
        """Return whether a linear layer is adapted, by its path in `transformers`."""
        return any(target == ALL_LINEAR or ends_with(path, target) for target in self.target_layers)


_NOT_OF_THE_SHAPE = ("path", "revision", "dropout", "classifier", "lora")


class ModelConfig(Config):
    """The shape of the Transformer."""

    path: Input[str | None] = None
    """Continue from this model, whose config.json gives the shape: a folder (any fsspec URL) or a hub name."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub name; null takes the newest state."""
    family: Identity[Literal["gpt2", "llama"]] = "gpt2"
    """`gpt2`: learned positions, LayerNorm, GELU, biases; `llama`: rotary positions, RMSNorm, SwiGLU."""
    num_layers: Identity[Annotated[int, Field(gt=0, le=10_000)]] = 4
    """Transformer blocks."""
    num_heads: Identity[Width] = 4
    """Attention heads."""
    num_kv_heads: Identity[Width | None] = None
    """Key and value heads, each shared by num_heads / num_kv_heads heads; null takes num_heads, as gpt2 must."""
    head_dim: LaterIdentity[Width | None] = None
    """Width of a head, for the llama family; null takes hidden_dim / num_heads."""
    hidden_dim: Identity[Width] = 128
    """Width of the residual stream."""
    mlp_dim: Identity[Annotated[int, Field(gt=0, le=2**24)] | None] = None
    """Width inside the feed-forward block; null takes 4 x hidden_dim."""
    max_positions: Identity[Length] = 256
    """Longest sequence in tokens."""
    vocab_size: Identity[Annotated[int, Field(gt=0, le=2**24)] | None] = None
    """Rows of the embedding; null takes the tokenizer's size. Padded to a multiple of 64 in memory."""
    dropout: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.0
    """Dropout probability after embeddings, attention and feed-forward blocks."""
    tie_embeddings: Identity[bool] = True
    """The output head shares the token embedding's weights."""
    norm_epsilon: Identity[Small] = 1e-5
    """Added to the variance in each normalisation."""
    rope_theta: LaterIdentity[Annotated[float, Field(gt=1, le=1e12)]] = 10_000.0
    """Base of the rotary frequencies, for the llama family."""
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched, for the llama family; null leaves them as they are."""
    qkv_bias: LaterIdentity[bool] = False
    """The llama family's queries, keys and values have biases, as in Qwen 2; those of gpt2 always have."""
    query_key_norm: LaterIdentity[bool] = False
    """RMSNorm of each head's queries and keys, as in Qwen 3; for the llama family."""
    classifier: Derived[ClassifierConfig | None] = None
    """A classification head in place of the output head; null has none."""
    lora: LoraConfig | None = None
    """Adapters that are trained instead of the model at `path`; null trains all of it."""

    @model_validator(mode="after")
    def _revision_goes_with_path(self) -> Self:
        if self.revision is not None and self.path is None:
            raise ValueError(f"revision {self.revision}: belongs to a hub name; set model.path, too")
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_dim % self.num_heads:
            raise ValueError(_not_dividing("num_heads", self.num_heads, "hidden_dim", self.hidden_dim))
        if self.family == "gpt2" and self.num_kv_heads not in (None, self.num_heads):
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads}: the gpt2 family needs num_heads ({self.num_heads}) or null"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(_not_dividing("num_kv_heads", self.kv_heads, "num_heads", self.num_heads))
        if self.family == "llama" and self.width_per_head % 2:
            raise ValueError(f"a head is {self.width_per_head} wide; rotary positions need an even width")
        return self

    @model_validator(mode="after")
    def _belongs_to_the_family(self) -> Self:
        of_llama = ("head_dim", "rope_theta", "rope_scaling", "qkv_bias", "query_key_norm")
        if self.family == "gpt2":
            for name in of_llama:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} {getattr(self, name)}: the gpt2 family has none; set family=llama")
        return self

    def of(self, path: str, revision: str | None, shape: "ModelConfig") -> "ModelConfig":
        """Return the configuration for continuing a model of that shape; dropout, head and adapters are this one's own.

        Raises:
            ValueError: A line for each field that was given and is another in the shape.
        """
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in _NOT_OF_THE_SHAPE}
        others = [
            f"model.{name}={value}: the model at model.path has {getattr(shape, name)}; leave it out"
            for name, value in given.items()
            if value != type(self).model_fields[name].default and value != getattr(shape, name)
        ]
        if others:
            raise ValueError("\n".join(others))
        own = {name: getattr(self, name) for name in _NOT_OF_THE_SHAPE}
        return shape.model_copy(update={**own, "path": path, "revision": revision})

    @property
    def draws_masks(self) -> bool:
        """Whether training draws dropout masks."""
        return bool(self.dropout or (self.lora and self.lora.dropout))

    @property
    def without_adapters(self) -> "ModelConfig":
        """The same model with its adapters merged into it."""
        return self.model_copy(update={"lora": None})

    @property
    def width_per_head(self) -> int:
        return self.head_dim or self.hidden_dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def feed_forward_dim(self) -> int:
        return self.mlp_dim or 4 * self.hidden_dim


def padded_vocab_size(vocab_size: int) -> int:
    """Return the number of embedding rows: the next multiple of 64, for which matrix kernels are fast."""
    return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def is_in_a_block(parameter: str) -> bool:
    """Return whether a parameter of that name belongs to a block, not to the embeddings, the last norm or a head."""
    return parameter.startswith("blocks.")


def _not_dividing(name: str, value: int, whole_name: str, whole: int) -> str:
    nearest = sorted(sorted(divisors(whole), key=lambda n: abs(n - value))[:2])
    return f"{name} {value} does not divide {whole_name} {whole}; nearest: {' or '.join(map(str, nearest))}"
