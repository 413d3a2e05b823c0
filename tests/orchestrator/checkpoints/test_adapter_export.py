"""What a run of adapters leaves: the merged model, and the adapter in the form of PEFT, from a sharded checkpoint."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import fsspec
import peft
import pytest
import torch
from checkpoints import continue_model, write_checkpoint
from published_models import write_published
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from modules.errors import InputError
from modules.huggingface.folder import LocalFolder
from modules.huggingface.weights import load_huggingface
from modules.model import GPT
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.base_model import open_base_model
from orchestrator.artifacts.models import load_model
from orchestrator.commands.export import run as export
from orchestrator.configuration.commands import ExportConfig
from orchestrator.errors import ArtifactError, UserError

NEW = "<|im_end|>"
LORA = {"rank": 3, "alpha": 4.5, "trained_tokens": [5]}
# peft 0.21.2 asks transformers 5.23 by a name that it will not have for ever
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


class AdapterRun:
    """A run that has trained adapters beside a published model, to whose tokenizer a token was added."""

    def __init__(self, root: Path, kind: str, dtype: torch.dtype = torch.float32, lora: Any = LORA) -> None:
        self.base = root / "base"
        peer = write_published(self.base, kind)
        peer.to(dtype).save_pretrained(self.base)
        self._add_token()
        config = open_base_model(ModelConfig.model_validate({"path": str(self.base), "lora": lora}), False).config
        self.model = _random(self.base, config)
        self.storage = continue_model(root, self.base, self.model, lora)
        self.storage.remove("runs/tiny/checkpoints")
        write_checkpoint(self.storage, 1000, self.model, num_ranks=3)
        self.storage.write_bytes("runs/tiny/metrics.json", b'{"progress/step": 1000}')

    def _add_token(self) -> None:
        file = self.base / "tokenizer.json"
        content = json.loads(file.read_text())
        number = 1 + max(content["model"]["vocab"].values())
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": NEW})
        file.write_text(json.dumps(content))
        self.new = number

    @property
    def ids(self) -> Tensor:
        return torch.tensor([[7, self.new, 30, 5, self.new, 11, 250]])

    def export(self, **files: Any) -> None:
        values = {"run": {"name": "tiny"}, "storage": {"root": self.storage.url()}, "export": files}
        export(ExportConfig.model_validate(values))

    def folder(self, name: str) -> Path:
        path = self.storage.local_path(f"runs/tiny/{name}")
        assert path is not None
        return path


def _random(base: Path, config: ModelConfig) -> GPT:
    plain = dict(load_huggingface(LocalFolder(base), vocab_size=config.vocab_size).named_parameters())
    model, generator = GPT(config, config.vocab_size or 0).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(drawn if parameter.requires_grad else plain[name])
    return model


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model.head.logits(model(ids)) if isinstance(model, GPT) else model(ids).logits


@pytest.fixture(scope="module", params=["gpt2", "llama", "untied"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AdapterRun:
    """A run that was exported, in float32."""
    run = AdapterRun(tmp_path_factory.mktemp(request.param), request.param)
    run.export()
    return run


def test_the_merged_model_has_the_logits_of_the_unmerged_one_everywhere(finished: AdapterRun) -> None:
    ids, expected = finished.ids, logits(finished.model, finished.ids)
    unadapted = load_huggingface(LocalFolder(finished.base), vocab_size=finished.new + 1)
    assert (expected - logits(unadapted, ids)).abs().max() > 0.01
    ours = load_model(str(finished.folder("model"))).model
    peer = AutoModelForCausalLM.from_pretrained(finished.folder("model")).eval()
    for opened in (ours, peer):
        torch.testing.assert_close(logits(opened, ids), expected, rtol=0, atol=1e-6)


def test_peft_opens_the_adapter_with_its_new_token(finished: AdapterRun) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.folder("adapter"))
    assert tokenizer.convert_tokens_to_ids(NEW) == finished.new
    base = AutoModelForCausalLM.from_pretrained(finished.base).eval()
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    opened = peft.PeftModel.from_pretrained(base, finished.folder("adapter")).eval()
    torch.testing.assert_close(logits(opened, finished.ids), logits(finished.model, finished.ids), rtol=0, atol=1e-6)


def test_we_open_the_adapter_with_its_new_token_from_any_url(finished: AdapterRun) -> None:
    url = f"memory://{uuid.uuid4().hex}/adapter"
    fsspec.filesystem("memory").put(str(finished.folder("adapter")), url, recursive=True)
    for place in (str(finished.folder("adapter")), url):
        opened = load_model(str(finished.base), adapter=place)
        assert opened.tokenizer.id_of(NEW) == finished.new < opened.model.vocab_size
        torch.testing.assert_close(
            logits(opened.model, finished.ids), logits(finished.model, finished.ids), rtol=0, atol=1e-6
        )
        assert opened.recipe["model"]["lora"]["rank"] == 3


def test_the_adapter_is_small_and_names_no_folder_of_this_machine(finished: AdapterRun) -> None:
    manifest = artifact.verify(finished.storage, "runs/tiny/adapter")
    assert (manifest["kind"], manifest["step"]) == ("adapter", 1000)
    content = json.loads((finished.folder("adapter") / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] is None
    assert not {"model.safetensors", "config.json"} & {file.name for file in finished.folder("adapter").iterdir()}


def test_a_bfloat16_model_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    run = AdapterRun(tmp_path, "llama", torch.bfloat16, {"rank": 2, "alpha": 6, "target_layers": ["q_proj", "up_proj"]})
    run.export()
    base, found = (load_file(folder / "model.safetensors") for folder in (run.base, run.folder("model")))
    trained = dict(run.model.named_parameters())
    for name, weight in found.items():
        expected = base[name].float()
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            part, layer = name.split(".")[-2], name.split(".")[2]
            fused = "attention.qkv" if part == "q_proj" else "mlp.gate_up"
            a, b = (trained[f"blocks.{layer}.{fused}.adapter.{part}_{end}"].detach() for end in "ab")
            expected = expected + b @ a * 3
            assert not torch.equal(expected.bfloat16(), base[name])
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight[: len(base[name])], expected.bfloat16()[: len(weight)]), name


def test_the_model_beside_which_adapters_were_trained_must_be_there_and_the_same(tmp_path: Path) -> None:
    run = AdapterRun(tmp_path, "gpt2")
    run.base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no model there"):
        run.export()
    write_published(run.base, "gpt2")
    weights = run.base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="is not the model any more beside which the run trained adapters"):
        run.export()
    assert not run.storage.exists("runs/tiny/model")


def test_mistakes_about_an_adapter_are_named(finished: AdapterRun, tmp_path: Path) -> None:
    base, adapter = str(finished.base), finished.folder("adapter")
    with pytest.raises(UserError, match=r"model.adapter=.*: no adapter there; name a folder with adapter_config.json"):
        load_model(base, adapter=str(finished.folder("model")))
    write_published(tmp_path / "normed", "normed")
    shutil.copytree(adapter, tmp_path / "copy", ignore=shutil.ignore_patterns("COMMITTED"))
    with pytest.raises(InputError, match="has no place in the model|has shape"):
        load_model(str(tmp_path / "normed"), adapter=str(tmp_path / "copy"))
    shutil.copytree(adapter, tmp_path / "damaged")
    weights = tmp_path / "damaged/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"model.adapter=.*adapter_model.safetensors"):
        load_model(base, adapter=str(tmp_path / "damaged"))
