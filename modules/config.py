"""Frozen configurations of what is trained: data, tokenizer, model, objective, optimizer and training."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from modules.config_fields import (
    DERIVED,
    MOST_STEPS,
    ActivationCheckpointing,
    Config,
    Count,
    CountOrZero,
    Delimiter,
    Derived,
    Factor,
    HeadLoss,
    Identity,
    Input,
    LaterIdentity,
    Length,
    NumBytes,
    ObjectiveName,
    Paths,
    Precision,
    Probability,
    Role,
    Runtime,
    Seconds,
    Seed,
    Sequences,
    Small,
    SourceName,
    Steps,
    Width,
    divisors,
    holds_groups,
)
from modules.quality_config import DecontaminateConfig, DeduplicateConfig, FiltersConfig, RedactConfig
from modules.sources import check_sources, with_shared_fields

__all__ = ["DERIVED", "CountOrZero", "Derived", "Role", "Seconds", "Seed", "Width", "divisors", "holds_groups"]
"""What every configuration class is made of, which is found here as well."""


class OneTextConfig(Config):
    """Where a text comes from and what of it is held out for validation."""

    prefix: ClassVar[str] = ""
    """What its messages put before the names of its fields."""

    source: Identity[Literal["stdlib", "files", "huggingface"]] = "stdlib"
    """`stdlib`: Python's own source; `files`: `path`; `huggingface`: the hub data set named by `path`."""
    path: Input[Paths] = ()
    """A file, folder, glob or list of them (any fsspec URL), or a hub data set's name."""
    val_path: Input[Paths] = ()
    """The files of the validation split of a task, as in `path`."""
    test_path: Input[Paths] = ()
    """The files of the test split of a task, as in `path`."""
    split_field: LaterIdentity[Annotated[str, Field(min_length=1)] | None] = "split"
    """Field that says the split of a task's row, where rows have it: train, val (valid, validation, dev) or test."""
    text_field: Identity[str] = "text"
    """Field of the text in .jsonl, .json, .csv, .tsv, .parquet and hub data sets; a dot leads into a nested one."""
    revision: Input[str | None] = None
    """A commit, tag or branch of a hub data set; null takes the newest state. Its commit is part of the recipe."""
    missing: LaterIdentity[Literal["refuse", "skip"]] = "refuse"
    """A row without text (no such field, null or empty): `refuse` it, or `skip` it and tell how many there were."""
    csv_delimiter: LaterIdentity[Delimiter | None] = None
    """Character between the columns of .csv and .tsv files; null takes a comma in .csv and a tab in .tsv."""
    zstd_window_bytes: Runtime[Annotated[int, Field(ge=2**10, le=2**31)]] = 2**31
    """Refuse a .zst file that needs a window above this, which is held in memory; 2 GiB is the format's largest."""
    subset: Identity[str | None] = None
    """The configuration of a hub data set that has several."""
    hub_split: Identity[str] = "train"
    """The split of a hub data set that is read."""
    hub_val_split: LaterIdentity[str | None] = None
    """The split of a hub data set that is the validation split of a task."""
    hub_test_split: LaterIdentity[str | None] = None
    """The split of a hub data set that is the test split of a task."""
    val_fraction: Identity[Annotated[float, Field(ge=0, lt=1)]] = 0.01
    """Share of the text that is held out."""
    split: Identity[Literal["document", "position"]] = "document"
    """`document`: held out by a hash of each document; `position`: the end of the stream."""
    max_bytes: Identity[NumBytes | None] = None
    """Read at most this many bytes of text (UTF-8); null reads all."""
    num_processes: Runtime[Annotated[int, Field(gt=0, le=4096)] | None] = None
    """Number of tokenising processes; null takes one per core."""
    filters: FiltersConfig = FiltersConfig()
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    redact: RedactConfig = RedactConfig()
    deduplicate: DeduplicateConfig = DeduplicateConfig()

    @property
    def is_single(self) -> bool:
        """Whether it is one text, not several."""
        return True

    @model_validator(mode="after")
    def _path_is_given(self) -> Self:
        if self.source != "stdlib" and not self.path and self.is_single:
            raise ValueError(
                f"source={self.source} needs {self.prefix}path: name a file, a folder, a glob or a data set"
            )
        if self.source == "stdlib" and self.path:
            raise ValueError(f"source=stdlib takes no {self.prefix}path; use data=files for your own text")
        for name in ("path", "val_path", "test_path"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} is empty, which would be the current folder; write . if that is meant")
        if self.source == "huggingface" and len(self.path) != 1 and self.is_single:
            raise ValueError(f"source=huggingface takes one data set name in {self.prefix}path")
        if self.source != "huggingface" and self.revision is not None:
            raise ValueError(f"{self.prefix}revision belongs to a hub data set: it needs data=huggingface")
        return self

    @model_validator(mode="after")
    def _splits_suit_the_source(self) -> Self:
        for split in ("val", "test"):
            path, hub_split = f"{split}_path", f"hub_{split}_split"
            if self.source != "files" and getattr(self, path):
                raise ValueError(f"data.{path} needs data=files; a split of a hub data set is data.{hub_split}")
            if self.source != "huggingface" and getattr(self, hub_split) is not None:
                raise ValueError(f"data.{hub_split} needs data=huggingface; files of a split are data.{path}")
        hub_splits = [name for name in (self.hub_split, self.hub_val_split, self.hub_test_split) if name is not None]
        if len(set(hub_splits)) < len(hub_splits):
            raise ValueError("data.hub_split, hub_val_split and hub_test_split must be different splits")
        return self


class SourceConfig(OneTextConfig):
    """One of the texts of a mixture. What it does not say of the text is as in `data`."""

    name: Identity[SourceName]
    """What its metrics and messages call it."""
    weight: Identity[Factor] = 1.0
    """Its share of the samples is this, divided by the sum of all weights."""
    max_epochs: Runtime[Annotated[float, Field(gt=0, le=1e6)] | None] = None
    """Refuse a training that would read it more often than this; null allows any number of times."""

    def text(self) -> "DataConfig":
        """Return the configuration of this text alone."""
        return DataConfig.model_validate({name: getattr(self, name) for name in OneTextConfig.model_fields})


class DataConfig(OneTextConfig):
    """Where the text comes from and what is held out for validation."""

    prefix: ClassVar[str] = "data."

    sources: LaterIdentity[tuple[SourceConfig, ...]] = ()
    """Several texts in proportions, instead of one: fields of each as here, and name, weight and max_epochs."""

    @property
    def is_single(self) -> bool:
        return not self.sources

    @model_validator(mode="before")
    @classmethod
    def _sources_take_its_fields(cls, raw: Any) -> Any:
        return with_shared_fields(raw, OneTextConfig)

    @model_validator(mode="after")
    def _sources_are_a_mixture(self) -> Self:
        if self.sources:
            check_sources([(source.name, source.weight) for source in self.sources])
            for name in ("path", "val_path", "test_path", "revision"):
                if getattr(self, name):
                    raise ValueError(f"{name}: with data.sources each text has its own; leave it out, or the sources")
        return self


class TokenizerConfig(Config):
    """How text becomes tokens."""

    kind: Identity[Literal["bpe", "char", "byte", "file"]] = "bpe"
    """`bpe`: byte-level BPE trained on this data; `char`; `byte`; `file`: an existing tokenizer.json."""
    vocab_size: Identity[Annotated[int, Field(ge=300, le=2**24)]] = 8192
    """Largest vocabulary of a trained BPE, special tokens included; the other kinds determine their own size."""
    path: Input[str | None] = None
    """The tokenizer.json of `kind=file`, or a folder that holds one, any fsspec URL."""
    end_token: LaterIdentity[str | None] = None
    """The token of a given tokenizer.json that ends a document, such as `</s>`; null takes `<|endoftext|>`, added."""
    begin_token: LaterIdentity[str | None] = None
    """The token of a given tokenizer.json that is put before each document, such as `<s>`; null puts none."""
    mask_token: LaterIdentity[str | None] = None
    """The mask token of a given tokenizer.json, such as `[MASK]`; null takes `<|mask|>`, which is added."""
    added_tokens: LaterIdentity[Literal["all", "mask", "none"]] = "all"
    """Added to a given tokenizer.json: `all` our special tokens, `mask`: `<|mask|>` if it has no mask token, `none`."""
    max_training_bytes: Identity[NumBytes] = 32 * 2**20
    """A BPE is trained on at most this many bytes from the start of the training text."""
    sources: LaterIdentity[tuple[SourceName, ...]] = ()
    """Names of the data.sources that a BPE or `char` learns from, in equal parts of bytes; empty takes all of them."""

    @model_validator(mode="after")
    def _path_goes_with_file(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("tokenizer.path must be set with kind=file, and only then")
        if self.end_token is not None and self.kind != "file":
            raise ValueError("tokenizer.end_token needs kind=file: the other kinds end documents with <|endoftext|>")
        for name in ("begin_token", "mask_token", "added_tokens"):
            if self.kind != "file" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"tokenizer.{name} needs kind=file: the other kinds have our special tokens")
        if self.sources and not self.learns:
            raise ValueError(f"sources: needs kind=bpe or char; {self.kind} learns from no text")
        return self

    @property
    def learns(self) -> bool:
        """Whether it is made from text."""
        return self.kind in ("bpe", "char")


class PhaseConfig(Config):
    """A part of pretraining with fixed objective weights."""

    weights: Identity[dict[ObjectiveName, Factor]]
    """Weight of each objective's loss in the sum that is minimised."""
    fraction: Identity[Small | None] = None
    """Length as a share of training.num_steps."""
    steps: Identity[Steps | None] = None
    """Length in steps, instead of a fraction."""
    data_weights: LaterIdentity[dict[str, Factor] | None] = None
    """Weights of data.sources in this phase, 0 for those left out; null takes the sources' own."""

    @model_validator(mode="after")
    def _has_a_weight_and_one_length(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("weights: at least one of clm and mlm must be above 0")
        if (self.fraction is None) == (self.steps is None):
            raise ValueError("give either fraction or steps")
        if self.data_weights is not None and not any(self.data_weights.values()):
            raise ValueError("data_weights sum to nothing: at least one must be above 0")
        return self


class MaskingConfig(Config):
    """Probabilities of what replaces a predicted position (Devlin et al. 2018, section 3.1)."""

    mask: Identity[Probability] = 0.8
    """Replaced by the mask token."""
    random: Identity[Probability] = 0.1
    """Replaced by a random token."""
    unchanged: Identity[Probability] = 0.1
    """Left unchanged, but still predicted."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.mask + self.random + self.unchanged
        if abs(total - 1) > 1e-6:
            raise ValueError(f"mask + random + unchanged is {total:g}; it must be 1")
        return self


class ObjectiveConfig(Config):
    """What the model learns to predict, and when."""

    phases: Identity[Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]] = (
        PhaseConfig(weights={"clm": 1.0}, fraction=1.0),
    )
    """Parts of training with their objective weights, in order."""
    mlm_probability: Identity[Annotated[float, Field(gt=0, lt=1)]] = 0.15
    """Share of positions that are predicted under the masked objective."""
    mlm_corruption: MaskingConfig = MaskingConfig()
    """What replaces the predicted positions."""
    mlm_shift: Identity[bool] = False
    """Predict a masked token from the position before it (Charpentier and Samuel 2024, arXiv 2410.24159)."""

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Self:
        fractions = [phase.fraction for phase in self.phases if phase.fraction is not None]
        if len(fractions) == len(self.phases) and abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"the phases' fractions sum to {sum(fractions):g}; they must sum to 1")
        return self


class OptimizerConfig(Config):
    """How the weights are updated."""

    name: Identity[Literal["adamw", "muon"]] = "adamw"
    """`adamw` (Loshchilov and Hutter 2019); `muon` (Jordan 2024) for the matrices of the blocks, AdamW for the rest."""
    learning_rate: Identity[Annotated[float, Field(gt=0, le=1e6)]] = 1e-3
    """Highest learning rate."""
    min_learning_rate: Identity[Factor] = 1e-4
    """Learning rate at the last step, unless the schedule is constant or the warm-up as long as the run."""
    schedule: Identity[Literal["cosine", "linear", "constant", "wsd"]] = "cosine"
    """Shape after warm-up; `wsd` stays constant and falls linearly over the last `decay_fraction`."""
    warmup_steps: Identity[Annotated[int, Field(ge=0, le=MOST_STEPS)]] = 100
    """Steps of linear warm-up."""
    decay_fraction: Identity[Small] = 0.2
    """Share of the steps in which `wsd` decays."""
    betas: Identity[tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]] = (0.9, 0.95)
    """Decay rates of the two moments."""
    epsilon: Identity[Small] = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: Identity[Factor] = 0.1
    """Decoupled weight decay, on matrices only."""
    gradient_clip_norm: Identity[Annotated[float, Field(gt=0, le=1e30)] | None] = 1.0
    """Largest norm of the gradient over all parameters; null never clips. Muon's part is measured, but not clipped."""
    matrix_learning_rate: LaterIdentity[Annotated[float, Field(gt=0, le=1e6)] | None] = None
    """`muon`: highest learning rate of its matrices, which falls in proportion; null takes `learning_rate`."""
    momentum: LaterIdentity[Annotated[float, Field(ge=0, lt=1)]] = 0.95
    """`muon`: decay rate of the mean of its gradients (Nesterov momentum)."""

    @model_validator(mode="after")
    def _minimum_is_below_maximum(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        return self

    @model_validator(mode="after")
    def _settings_are_its_own(self) -> Self:
        for name in ("matrix_learning_rate", "momentum"):
            if self.name != "muon" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: belongs to optimizer=muon; leave it out, or choose that")
        return self


class TrainingConfig(Config):
    """Length, batches and precision of the training."""

    num_steps: Identity[Steps] = 1000
    """Optimizer steps."""
    sequence_length: Identity[Annotated[Length, Field(gt=1)]] = 256
    """Tokens in a sequence."""
    global_batch_size: Identity[Sequences] = 32
    """Sequences in a step, over all workers."""
    micro_batch_size: Runtime[Sequences | None] = None
    """Sequences that a worker computes at once; null takes its share of the global batch, with the most workers."""
    precision: Identity[Precision] = "32"
    """`32`; products in half precision: `bf16`, `16` (GPU only); weights and gradients, too: `bf16-true`, `16-true`."""
    tf32: LaterIdentity[bool] = False
    """Multiply float32 matrices as TF32, with 10 bits of mantissa instead of 23, on GPUs; only with precision=32."""
    attention_scope: Identity[Literal["sequence", "document"]] = "sequence"
    """`document` keeps attention within each document of a packed sequence."""
    position_scope: LaterIdentity[Literal["sequence", "document"]] = "sequence"
    """`document` counts positions from 0 in each document of a packed sequence; it needs attention_scope=document."""
    val_interval_steps: Runtime[Steps] = 250
    """Validate every this many steps, and at the end."""
    val_batches: Runtime[Count] = 10
    """Global batches in a validation; of a mixture, for each source."""
    log_interval_steps: Runtime[Steps] = 10
    """Log and refresh the progress line every this many steps."""
    gc_interval_steps: Runtime[Steps | None] = 50
    """Collect Python's garbage every this many steps, on all workers at once; null leaves it to each Python."""
    compile: Runtime[bool] = False
    """Compile the blocks with torch.compile; equal ones share what is compiled, so it takes as long as one block."""
    head_loss: Runtime[HeadLoss] = "eager"
    """Passes over the logits: `eager` by operations of torch, `compiled` fused by torch.compile, which suits GPUs."""
    activation_checkpointing: Runtime[ActivationCheckpointing] = "none"
    """Computed again in the backward pass, to keep less: `blocks` whole blocks, `selective` all but their products."""

    @property
    def compiled(self) -> str | None:
        """The first setting that asks for torch.compile; None if none does."""
        if self.compile:
            return "training.compile=true"
        return "training.head_loss=compiled" if self.head_loss == "compiled" else None

    @model_validator(mode="after")
    def _positions_restart_where_attention_does(self) -> Self:
        if self.position_scope == "document" and self.attention_scope == "sequence":
            raise ValueError(
                "position_scope=document: attention crosses documents, and would see several tokens at one position; "
                "set attention_scope=document, too"
            )
        return self

    @model_validator(mode="after")
    def _tf32_has_products_to_round(self) -> Self:
        if self.tf32 and self.precision != "32":
            raise ValueError(
                f"tf32=true: with precision={self.precision} no matrices are multiplied in float32; leave it out, or "
                "set precision=32"
            )
        return self

    @model_validator(mode="after")
    def _compiler_selects_itself(self) -> Self:
        if self.compile and self.activation_checkpointing == "selective":
            raise ValueError(
                "activation_checkpointing=selective: with compile=true torch.compile chooses what is cheap enough to "
                "be computed again; set none, or blocks"
            )
        return self
