"""A model directory from a checkpoint: opened by `transformers` and by us, with the same logits and the same end."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import NUM_TOKENS, begin_run, continue_model, random_model, write_checkpoint
from foreign_models import tokenizer_of, write_model
from safetensors.torch import load_file
from torch import Tensor

from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.huggingface.export import shards_of
from modules.model import GPT
from modules.model_config import ModelConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.models import load_model
from orchestrator.checkpoints import parts
from orchestrator.checkpoints.export import dtype_of
from orchestrator.checkpoints.fragments import FragmentReader
from orchestrator.commands.export import run
from orchestrator.configuration.commands import ExportConfig
from orchestrator.configuration.groups import ModelFilesConfig
from orchestrator.storage.store import Storage

END = 256
SHAPE = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32}
LLAMA = {**SHAPE, "family": "llama", "num_kv_heads": 2, "mlp_dim": 56}
SCALING = {"kind": "llama3", "factor": 8.0, "original_max_positions": 16}
VARIANTS = {
    "gpt2": SHAPE,
    "llama": {**LLAMA, "rope_scaling": SCALING},
    "qwen2": {**LLAMA, "qkv_bias": True},
    "qwen3": {**LLAMA, "query_key_norm": True, "head_dim": 16},
}
WHOLE, IN_PARTS = ("float32", 10**9), ("bfloat16", 30_000)
CASES = [
    ("gpt2", True, *IN_PARTS),
    ("gpt2", False, *WHOLE),
    ("llama", True, *WHOLE),
    ("llama", False, *IN_PARTS),
    ("qwen2", True, *IN_PARTS),
    ("qwen2", False, *WHOLE),
    ("qwen3", True, *WHOLE),
    ("qwen3", False, *IN_PARTS),
]


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def exported(root: Path, shape: dict[str, Any], model: GPT, **files: Any) -> Path:
    """Write the model as a checkpoint of three ranks, and export it by the command."""
    storage = begin_run(root, shape)
    write_checkpoint(storage, 10, model, num_ranks=3)
    values = {"run": {"name": "tiny"}, "storage": {"root": storage.url()}, "to": f"{root}/out", "export": files}
    run(ExportConfig.model_validate(values))
    return root / "out"


def input_ids() -> Tensor:
    return torch.randint(0, NUM_TOKENS, (2, 40), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: GPT) -> Tensor:
    return model.head.logits(model(input_ids()))


@pytest.mark.parametrize(("name", "tied", "dtype", "max_bytes"), CASES)
def test_export_is_opened_by_transformers_and_by_us_with_the_logits_of_the_checkpoint(
    transformers: Any, tmp_path: Path, name: str, tied: bool, dtype: str, max_bytes: int
) -> None:
    shape = {**VARIANTS[name], "tie_embeddings": tied}
    model = random_model(shape)
    folder = exported(tmp_path, shape, model, dtype=dtype, max_shard_bytes=max_bytes)
    assert (len(list(folder.glob("model-*.safetensors"))) > 1) == (dtype == "bfloat16")
    artifact.verify(Storage(str(folder)), "")
    kept = torch.float32 if dtype == "float32" else torch.bfloat16
    for parameter in model.parameters():  # what a file in that type can hold
        parameter.data = parameter.data.to(kept).float()
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert peer.dtype == kept
    with torch.no_grad():
        assert (peer.float().eval()(input_ids()).logits - logits(model)).abs().max() < 1e-4
    ours = load_model(str(folder))
    assert torch.equal(logits(ours.model), logits(model))
    assert ours.end_ids == (END,)
    assert ours.tokenizer.end_of_text_id == END


def test_a_bfloat16_export_differs_from_the_checkpoint_by_rounding_alone(tmp_path: Path) -> None:
    model = random_model(VARIANTS["llama"])
    folder = exported(tmp_path, VARIANTS["llama"], model, dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored, model.token_embedding.weight[:NUM_TOKENS].detach().bfloat16())
    found = logits(load_model(str(folder)).model)
    assert 0 < (found - logits(model)).abs().max() < 0.05 * logits(model).abs().max()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_of_transformers_and_ours_stop_at_the_end_token(
    transformers: Any, tmp_path: Path, name: str
) -> None:
    shape = {**VARIANTS[name], "tie_embeddings": False}
    model, prompt = random_model(shape), list(b"the quick")
    with torch.no_grad():
        hidden = model(torch.tensor([prompt]))[0, -1]
        model.head.weight[END] = 100 * hidden / hidden.norm()  # so the end token is by far the likeliest
    folder = exported(tmp_path, shape, model)
    peer, ids = transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor([prompt])
    assert peer.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist() == [*prompt, END]
    assert peer.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None).shape[1] == len(prompt) + 8
    ours = load_model(str(folder))
    steps = list(sample(ours.model, [prompt], Sampling(1, max_new_tokens=8, temperature=0, end_ids=ours.end_ids)))
    assert [int(step[0]) for step in steps] == [END]


@pytest.mark.parametrize("hub_name", ["someone/small", None])
def test_run_that_continues_a_model_is_exported_with_what_came_with_it(
    transformers: Any, tmp_path: Path, hub_name: str | None
) -> None:
    base = tmp_path / "base"
    model = write_model(base, "llama2", end=2)
    letter = tokenizer_of("llama2").token_to_id("b")
    (base / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    settings = {"eos_token_id": [2, letter], "bos_token_id": 1, "pad_token_id": 0}
    (base / "generation_config.json").write_text(json.dumps(settings))
    storage = continue_model(tmp_path, base, model)
    if hub_name:
        recipe = json.loads(storage.read_bytes("runs/tiny/recipe.json"))
        recipe["base_model"] = {"hub": hub_name, "commit": "0123abc"}
        storage.write_bytes("runs/tiny/recipe.json", json.dumps(recipe).encode())
    shutil.rmtree(base)
    storage.remove("data")
    folder = tmp_path / "out"
    run(ExportConfig.model_validate({"run": {"name": "tiny"}, "storage": {"root": storage.url()}, "to": str(folder)}))
    assert json.loads((folder / "generation_config.json").read_text()) == settings
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == [2, letter]
    assert load_model(str(folder)).end_ids == (2, letter)
    peer = transformers.AutoTokenizer.from_pretrained(folder)
    assert peer.apply_chat_template([{"role": "user", "content": "To be"}], tokenize=False) == "To be"
    assert peer("To be", add_special_tokens=False).input_ids == (
        tokenizer_of("llama2").encode("To be", add_special_tokens=False).ids
    )
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]).get("base_model") == hub_name
    assert ("| continued from | someone/small, commit 0123abc |" in card) == bool(hub_name)
    assert str(tmp_path) not in card


def test_settings_of_generation_name_the_tokens_of_the_tokenizer(transformers: Any, tmp_path: Path) -> None:
    folder = exported(tmp_path, SHAPE, random_model(SHAPE))
    settings = json.loads((folder / "generation_config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert settings == {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == END


def test_export_reads_the_weights_once_and_no_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read tensor by tensor, the chunks of many small ones were read again and again."""
    chunk, num_ranks = 4096, 3
    monkeypatch.setattr(parts, "CHUNK_BYTES", chunk)
    read, filled = [], []
    read_into, fill = Storage.read_into, FragmentReader.fill

    def counting(self: Storage, name: str, start: int, buffer: memoryview) -> None:
        read.append(len(buffer))
        read_into(self, name, start, buffer)

    def noting(self: FragmentReader, wanted: Any) -> None:
        wanted = list(wanted)
        filled.append((sum(item.view.nbytes for item in wanted), len(list(tmp_path.glob(".staging-out*/model-*")))))
        fill(self, wanted)

    monkeypatch.setattr(Storage, "read_into", counting)
    monkeypatch.setattr(FragmentReader, "fill", noting)
    model = random_model(SHAPE)
    exported(tmp_path, SHAPE, model, max_shard_bytes=50_000)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    checkpoint = tmp_path / "outputs/runs/tiny/checkpoints/step_00000010"
    assert sum(path.stat().st_size for path in checkpoint.glob("rank_*")) > 3 * weights
    # beside the weights a file's header, and where two reads meet a part of a chunk at both sides
    assert 2 < len(filled) < 6
    assert weights <= sum(read) <= weights + 2 * chunk * num_ranks * len(filled)
    # what is filled at once becomes one file, and the next is begun when that is written
    assert all(num_bytes <= 50_000 and written == number for number, (num_bytes, written) in enumerate(filled))


def test_no_more_than_one_file_of_an_8b_model_is_in_memory() -> None:
    config = ModelConfig(
        family="llama",
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        hidden_dim=4096,
        mlp_dim=14336,
        max_positions=8192,
        tie_embeddings=False,
    )
    with torch.device("meta"):
        sizes = {name: 4 * parameter.numel() for name, parameter in GPT(config, 128_256).named_parameters()}
    shards = shards_of(config, 128_256, torch.float32, ModelFilesConfig().max_shard_bytes)
    assert [name for names in shards for name in names] == list(sizes)
    assert sum(sizes.values()) > 32e9
    assert max(sum(sizes[name] for name in names) for names in shards) <= 5e9


@pytest.mark.parametrize(
    ("asked", "precision", "dtype"),
    [
        (None, "32", "float32"),
        (None, "bf16", "float32"),
        (None, "bf16-true", "bfloat16"),
        (None, "16-true", "float32"),
        ("float16", "bf16-true", "float16"),
        ("float32", "bf16-true", "float32"),
    ],
)
def test_weights_have_the_type_of_the_training_unless_another_is_set(asked: Any, precision: str, dtype: str) -> None:
    assert dtype_of(ModelFilesConfig(dtype=asked), {"training": {"precision": precision}}) == dtype


def test_no_secret_reaches_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_in_environment")
    storage = begin_run(tmp_path, SHAPE)
    write_checkpoint(storage, 10, random_model(SHAPE))
    recipe = json.loads(storage.read_bytes("runs/tiny/recipe.json"))
    files = [["model.safetensors", "https://host/x?X-Amz-Signature=planted_in_query"]]
    recipe |= {"base_model": {"files": files}, "note": "hf_planted_in_environment"}
    storage.write_bytes("runs/tiny/recipe.json", json.dumps(recipe).encode())
    run(
        ExportConfig.model_validate(
            {"run": {"name": "tiny"}, "storage": {"root": storage.url()}, "to": f"{tmp_path}/out"}
        )
    )
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"planted" not in content
    assert b"https://host/x?***" in content
