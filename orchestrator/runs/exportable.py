"""A checkpoint of a run, with everything else that a model directory is made of."""

from pydantic import ValidationError

from modules.model_config import ModelConfig
from orchestrator.artifacts.base_model import check_is_same, kept_model
from orchestrator.artifacts.data_facts import DataFacts, tokenizer_of
from orchestrator.artifacts.mixture import is_there
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.export import RECIPE, Exportable
from orchestrator.checkpoints.first_weights import BaseWeights
from orchestrator.errors import DamagedFileError, UserError
from orchestrator.runs.run import Run
from orchestrator.storage.store import Storage


def exportable(storage: Storage, this_run: Run, checkpoint: Checkpoint) -> Exportable:
    """Return what the model of a checkpoint is exported from.

    Raises:
        DamagedFileError: the recipe describes no model.
        UserError: the data with its tokenizer, or the model that was continued, is not there.
    """
    recipe = this_run.recipe
    try:
        model = ModelConfig.model_validate(recipe["model"])
    except (ValidationError, KeyError) as error:
        where = storage.url(f"{this_run.folder}/{RECIPE}")
        raise DamagedFileError(f"{where}: describes no model that this version knows ({error})") from error
    data_name, kept = recipe["data"], kept_model(storage, this_run.base_name)
    if kept is None and not is_there(storage, data_name):
        raise UserError(
            f"{storage.url(data_name)}: the text that run {this_run.name} was trained on is not there, and with it its "
            "tokenizer; restore that folder, or run its `pretrain` again, which prepares it anew"
        )
    tokenizer, base = kept.tokenizer if kept else tokenizer_of(storage, data_name), None
    if model.lora is not None:
        model = _with_base(storage, this_run, model)
        base = BaseWeights(model, model.vocab_size or tokenizer.vocab_size)
    return Exportable(
        run_name=this_run.name,
        checkpoint=checkpoint,
        model=model,
        tokenizer=tokenizer,
        special_ids=kept.special_ids if kept else {},
        recipe=recipe,
        data=DataFacts.read(storage, data_name),
        validation=_validation(storage, this_run, checkpoint.progress.step),
        base=base,
        base_dtype=base_dtype(storage, this_run),
    )


def _with_base(storage: Storage, this_run: Run, model: ModelConfig) -> ModelConfig:
    """Return the configuration with the place of the model beside which adapters were trained.

    Raises:
        UserError: it is not where the run has read it, or is another one.
    """
    path, revision = this_run.base_place(storage)
    check_is_same(path, revision, this_run.recipe["base_model"])
    return model.model_copy(update={"path": path, "revision": revision})


def _validation(storage: Storage, this_run: Run, step: int) -> dict[str, float]:
    """Return the figures on held-out text of the model after a step; those of the exported one alone are kept."""
    final = this_run.metrics(storage) or {}
    return final if this_run.exported_step(storage) == step else {}


def base_dtype(storage: Storage, this_run: Run) -> str | None:
    """Return the type of the weights beside which adapters were trained; None without adapters."""
    if "lora" not in this_run.recipe.get("model", {}):
        return None
    kept = kept_model(storage, this_run.base_name)
    return kept and kept.dtype
