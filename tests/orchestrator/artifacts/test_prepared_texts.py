"""Sources of a mixture are prepared each on its own and once, with one tokenizer."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modules.config import DataConfig, TokenizerConfig
from modules.data.shards import TokenData
from modules.errors import InputError
from orchestrator.artifacts import prepared_data as prepared
from orchestrator.artifacts import shared_tokenizer as shared
from orchestrator.artifacts.data_facts import DataFacts, tokenizer_of
from orchestrator.artifacts.mixture import is_there, sources_of
from orchestrator.artifacts.prepared_data import DataRequirements, prepared_data
from orchestrator.artifacts.prepared_texts import num_train_tokens, prepared_texts, text_notes, texts_name
from orchestrator.configuration.commands import PretrainConfig
from orchestrator.errors import ArtifactError, UserError
from orchestrator.runs.input_identity import Inputs
from orchestrator.runs.prune import find_leftovers
from orchestrator.storage.store import Storage

BYTE = TokenizerConfig(kind="byte")
BPE = TokenizerConfig(vocab_size=300)
LETTERS = {"a": "abcde", "b": "fghij", "c": "klmno"}


def write(folder: Path, name: str, num_rows: int = 60) -> None:
    rng = random.Random(name)
    texts = ["".join(rng.choices(LETTERS[name] + " ", k=40)) for _ in range(num_rows)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


class Made:
    """Texts a, b and c, a storage root, and what was made in it."""

    def __init__(self, folder: Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.storage, self.count = folder, Storage(root), {"prepared": 0, "trained": 0}
        for name in LETTERS:
            write(folder, name)
        monkeypatch.setattr(prepared, "prepare_tokens", self._counted("prepared", prepared.prepare_tokens))
        monkeypatch.setattr(shared, "build_tokenizer", self._counted("trained", shared.build_tokenizer))

    def _counted(self, what: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.count[what] += 1
            return make(*arguments)

        return counted

    def data(self, **weights: float) -> DataConfig:
        sources = [
            {"name": name, "path": str(self.folder / f"{name[0]}.jsonl"), "weight": weight}
            for name, weight in weights.items()
        ]
        return DataConfig.model_validate({"sources": sources, "val_fraction": 0.2, "num_processes": 1})

    def prepare(self, tokenizer: TokenizerConfig, **weights: float) -> tuple[str, int, int]:
        """Prepare a mixture; return its name, and how many texts were prepared and tokenizers trained for it."""
        before = dict(self.count)
        name = prepared_texts(self.storage, self.data(**weights), tokenizer, DataRequirements(), lambda _: print)
        return name, self.count["prepared"] - before["prepared"], self.count["trained"] - before["trained"]


@pytest.fixture(params=["local", "memory"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = str(tmp_path / "root") if request.param == "local" else f"memory://mixture-{tmp_path.name}"
    return Made(tmp_path, root, monkeypatch)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(tmp_path, str(tmp_path / "root"), monkeypatch)


def test_a_new_weight_another_order_and_the_same_command_prepare_nothing(made: Made) -> None:
    name, *first = made.prepare(BPE, a=1, b=2, c=3)
    assert first == [3, 1]
    assert made.prepare(BPE, a=5, b=0.1, c=3) == (name, 0, 0)
    assert made.prepare(BPE, c=1, a=1, b=1) == (name, 0, 0)
    assert texts_name(made.storage, made.data(a=1, b=1, c=1), BPE) == name
    assert list(sources_of(made.storage, name)) == ["a", "b", "c"]


@pytest.mark.parametrize("tokenizer", [BYTE, BPE.model_copy(update={"sources": ("a",)})], ids=["given", "named"])
def test_a_new_source_prepares_itself_alone_where_the_tokenizer_stays(local: Made, tokenizer: TokenizerConfig) -> None:
    name, *first = local.prepare(tokenizer, a=1, b=1)
    assert first == [2, int(tokenizer.learns)]
    other, *second = local.prepare(tokenizer, a=1, b=1, c=1)
    assert (other != name, second) == (True, [1, 0])
    assert sources_of(local.storage, name).items() < sources_of(local.storage, other).items()
    assert local.prepare(tokenizer, a=1, b=1) == (name, 0, 0)


def test_a_tokenizer_that_learns_from_all_is_trained_anew_for_a_new_source_and_all_are_prepared(local: Made) -> None:
    local.prepare(BPE, a=1, b=1)
    assert local.prepare(BPE, a=1, b=1, c=1)[1:] == (3, 1)


def test_what_a_source_is_called_decides_nothing_of_it(local: Made) -> None:
    name, *_ = local.prepare(BPE, a=1, b=1)
    other, *again = local.prepare(BPE, b2=1, a2=1)
    assert again == [0, 0]
    assert sorted(sources_of(local.storage, name).values()) == sorted(sources_of(local.storage, other).values())


def test_a_changed_file_prepares_its_source_alone_and_is_named(local: Made) -> None:
    config = PretrainConfig(data=local.data(a=1, b=1), tokenizer=BYTE)
    before = Inputs(local.storage).identities(config, {})
    local.prepare(BYTE, a=1, b=1)
    write(local.folder, "b", num_rows=61)
    assert local.prepare(BYTE, a=1, b=1)[1:] == (1, 0)
    after = Inputs(local.storage).identities(config, {})
    assert {name for name in after if after[name] != before[name]} == {"data.sources.b"}
    linked = Inputs(local.storage).identities(config, {"data.sources.1.path": "another stage's"})
    assert linked == {"data.sources.1.path": "another stage's", "data.sources.a": after["data.sources.a"]}
    (local.folder / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"source b: .*b\.jsonl"):
        Inputs(local.storage).identities(config, {})


def test_a_source_with_a_given_tokenizer_is_the_text_prepared_alone(local: Made) -> None:
    text = DataConfig(source="files", path=(str(local.folder / "b.jsonl"),), val_fraction=0.2, num_processes=1)
    alone = prepared_data(local.storage, text, BYTE, DataRequirements(), lambda _: print)
    name, num_prepared, _ = local.prepare(BYTE, a=1, b=1)
    assert (sources_of(local.storage, name)["b"], num_prepared) == (alone, 1)


def test_all_sources_have_the_tokenizer_that_learned_from_all_of_them(local: Made) -> None:
    name, *_ = local.prepare(BPE, a=1, b=1, c=1)
    root = local.folder / "root"
    (folder,) = (root / "tokenizer").iterdir()
    contents = {(root / of / "tokenizer.json").read_bytes() for of in sources_of(local.storage, name).values()}
    assert contents == {(folder / "tokenizer.json").read_bytes()}
    tokenizer = tokenizer_of(local.storage, name)
    assert tokenizer.vocab_size == 300
    vocabulary = json.loads(tokenizer.serialised())["model"]["vocab"]
    merged = "".join(token for token in vocabulary if len(token) == 2)
    assert all(set(letters) & set(merged) for letters in LETTERS.values())
    data = TokenData.open(root / sources_of(local.storage, name)["c"])
    tokens = data.train
    assert len(tokens) == num_train_tokens(local.storage, name)["c"] > 0


def test_a_tokenizer_learns_from_equal_parts_of_the_beginnings(local: Made) -> None:
    write(local.folder, "a", num_rows=900)
    name, *_ = local.prepare(BPE.model_copy(update={"max_training_bytes": 4000}), a=1, b=1)
    vocabulary = json.loads(tokenizer_of(local.storage, name).serialised())["model"]["vocab"]
    learned = {
        letter: sum(set(token) <= set(LETTERS[letter]) for token in vocabulary if len(token) > 1) for letter in "ab"
    }
    assert min(learned.values()) > 0.6 * max(learned.values())


def test_facts_about_a_mixture_are_those_of_its_sources_and_their_sums(made: Made) -> None:
    name, *_ = made.prepare(BYTE, a=1, b=1)
    facts = DataFacts.read(made.storage, name)
    assert facts is not None
    assert (facts.source, list(facts.sources), facts.files) == ("mixture", ["a", "b"], ())
    for split in ("train", "val"):
        assert facts.num_tokens[split] == sum(of.num_tokens[split] for of in facts.sources.values()) > 0
        assert facts.num_bytes[split] == sum(of.num_bytes[split] for of in facts.sources.values()) > 0
    assert is_there(made.storage, name)
    made.storage.remove(sources_of(made.storage, name)["b"])
    assert not is_there(made.storage, name)
    assert DataFacts.read(made.storage, name) is None


def test_sources_of_a_mixture_that_a_run_refers_to_are_kept(made: Made) -> None:
    used, *_ = made.prepare(BYTE, a=1, b=1)
    unused, *_ = made.prepare(BYTE, b=1, c=1)
    made.storage.write_bytes("runs/x/recipe.json", json.dumps({"command": "pretrain", "data": used}).encode())
    left = {one.path for one in find_leftovers(made.storage).data}
    assert left == {unused, sources_of(made.storage, unused)["c"]}


@pytest.mark.parametrize(
    ("text", "requirements", "said"),
    [
        ("\n\n", DataRequirements(), "source b: .*it has no rows"),
        ('{"text": "short"}\n' * 9, DataRequirements(), "source b: data.val_fraction=0.2: the "),
        ('{"other": "x"}\n', DataRequirements(), "source b: .*no field 'text'"),
        (None, DataRequirements(sequence_length=2000), "source b: training.sequence_length=2000: the data has"),
        (None, DataRequirements(max_vocab_size=100), "source a: model.vocab_size=100: smaller than the tokenizer's"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(
    local: Made, text: str | None, requirements: DataRequirements, said: str
) -> None:
    write(local.folder, "a", num_rows=900)
    if text is not None:
        (local.folder / "b.jsonl").write_text(text)
    with pytest.raises((UserError, InputError), match=said):
        prepared_texts(local.storage, local.data(a=1, b=1), BYTE, requirements, lambda _: print)
    assert not list((local.folder / "root/data").glob("mixture*"))


def test_a_source_that_is_not_there_is_named_before_a_tokenizer_learns(local: Made) -> None:
    (local.folder / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"source b: .*b\.jsonl"):
        local.prepare(BPE, a=1, b=1)
    assert local.count == {"prepared": 0, "trained": 0}


def test_notes_say_which_source_they_are_about(local: Made) -> None:
    name, *_ = local.prepare(TokenizerConfig(kind="char", sources=("a",)), a=1, b=1)
    (line,) = text_notes(local.storage, name)
    assert line.startswith("source b: ")


def test_a_damaged_mixture_is_not_read(local: Made) -> None:
    name, *_ = local.prepare(BYTE, a=1, b=1)
    (local.folder / "root" / name / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        sources_of(local.storage, name)
