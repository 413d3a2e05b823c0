"""A base model that becomes a chat model: we and `transformers` read template, new tokens and end tokens alike."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_templates import BEGINNING, CONTROL, DEFAULT_SYSTEM, ENDLESS, PLAIN, chat_model_files
from foreign_tokenizers import foreign
from model_files import as_json, model_files, written

from modules.chat_template import find_chat_template
from modules.config import TokenizerConfig
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import build_tokenizer
from modules.errors import InputError
from modules.tasks.chat_files import chat_files
from modules.tasks.settings import DialogueConfig
from modules.tasks.turns import find_end_token

TALK = [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}]
CONFIG = {"model_type": "gpt2", "vocab_size": 500, "eos_token_id": 0, "bos_token_id": 0}


NAMES = {"gpt2_holes": {"eos_token": "<|endoftext|>"}}


def base_files(kind: str = "gpt2", **config: Any) -> dict[str, bytes]:
    """Return the files of a model that does not chat, with a row for each token."""
    files = model_files(kind, **NAMES[kind]) if kind in NAMES else chat_model_files(None, kind, control=())
    num_rows = max(json.loads(foreign(kind))["model"]["vocab"].values()) + 1
    given = CONFIG | {"vocab_size": num_rows} | config
    return files | {"config.json": as_json(given), "generation_config.json": as_json({"eos_token_id": 0})}


def auto_of(folder: Path, files: Mapping[str, bytes]) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(written(folder, files))


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_holes"])
def test_new_tokens_template_and_end_are_read_alike_by_us_and_transformers(kind: str, tmp_path: Path) -> None:
    import transformers

    before = base_files(kind)
    files = chat_files(before, DialogueConfig(new_tokens=CONTROL), PLAIN)
    tokenizer, template = load_pretrained(files, "m"), find_chat_template(files, "m")
    old = load_pretrained(before, "m")
    ids = [tokenizer.id_of(name) for name in CONTROL]
    assert ids == [old.vocab_size, old.vocab_size + 1]
    auto = auto_of(tmp_path, files)
    assert auto.convert_tokens_to_ids(list(CONTROL)) == ids
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == files["chat_template.jinja"].decode() == PLAIN
    assert auto.chat_template == PLAIN
    assert template.encode(tokenizer, TALK) == auto.apply_chat_template(TALK, return_dict=False)
    assert auto.decode(template.encode(tokenizer, TALK), skip_special_tokens=True) == "user\nto be\nassistant\nor not\n"
    assert tokenizer.encode("to be <|im_end|>") == old.encode("to be <|im_end|>")
    assert set(tokenizer.end_ids) == {0, ids[1]}
    assert tokenizer.end_token == "<|endoftext|>"
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [0, ids[1]]
    config = json.loads(files["config.json"])
    assert (config["eos_token_id"], config["vocab_size"]) == ([0, ids[1]], ids[1] + 1)


def test_rows_that_a_model_has_to_spare_are_kept() -> None:
    files = chat_files(base_files(vocab_size=512), DialogueConfig(new_tokens=CONTROL), PLAIN)
    assert json.loads(files["config.json"])["vocab_size"] == 512


def test_settings_that_list_all_tokens_list_the_new_ones(tmp_path: Path) -> None:
    before = base_files()
    settings = json.loads(before["tokenizer_config.json"])
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    settings["added_tokens_decoder"] = {"0": {"content": "<|endoftext|>", **flags, "special": True}}
    files = chat_files(before | {"tokenizer_config.json": as_json(settings)}, DialogueConfig(new_tokens=CONTROL), PLAIN)
    listed = json.loads(files["tokenizer_config.json"])["added_tokens_decoder"]
    assert [listed[str(number)]["content"] for number in (500, 501)] == list(CONTROL)
    assert auto_of(tmp_path, files).convert_tokens_to_ids(list(CONTROL)) == [500, 501]


def test_a_model_that_chats_already_keeps_its_files_but_stops_at_the_end_of_a_turn() -> None:
    before = chat_model_files(DEFAULT_SYSTEM) | {"config.json": as_json(CONFIG | {"vocab_size": 504})}
    files = chat_files(before, DialogueConfig(), None)
    assert {name: content for name, content in files.items() if name != "config.json"} == {
        name: content for name, content in before.items() if name != "config.json"
    }
    end = load_pretrained(before, "m").id_of("<|im_end|>")
    assert json.loads(files["config.json"])["eos_token_id"] == [0, end]
    assert chat_files(files, DialogueConfig(), None) == files


@pytest.mark.parametrize(("bos", "written_as"), [("<|begin|>", "{{ bos_token }}"), (None, '{{ "<|begin|>" }}')])
def test_a_given_template_writes_the_token_that_begins_texts_once(
    bos: str | None, written_as: str, tmp_path: Path
) -> None:
    before = base_files("llama3")
    settings = json.loads(before["tokenizer_config.json"]) | {"bos_token": bos}
    before |= {"tokenizer_config.json": as_json(settings)}
    files = chat_files(before, DialogueConfig(new_tokens=CONTROL), PLAIN)
    assert files["chat_template.jinja"].decode() == written_as + PLAIN
    tokenizer, template = load_pretrained(files, "m"), find_chat_template(files, "m")
    assert template.encode(tokenizer, TALK).count(0) == 1
    assert template.encode(tokenizer, TALK)[0] == tokenizer.begin_id == 0
    assert template.encode(tokenizer, TALK) == auto_of(tmp_path, files).apply_chat_template(TALK, return_dict=False)
    if bos:
        again = chat_files(before, DialogueConfig(new_tokens=CONTROL), BEGINNING)
        assert again["chat_template.jinja"].decode() == BEGINNING


def test_a_model_made_here_that_never_chatted_gets_turns_of_the_tokens_that_its_tokenizer_keeps_for_them(
    tmp_path: Path,
) -> None:
    made = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)
    made.save_for_transformers(tmp_path, 64)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    files = chat_files(before, DialogueConfig(), None)
    tokenizer, template = load_pretrained(files, "m"), find_chat_template(files, "m")
    talk = [{"role": "system", "content": "short"}, *TALK]
    ids = template.encode(tokenizer, talk)
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|system|>\nshort<|end|>\n<|user|>\nto be<|end|>\n<|assistant|>\nor not<|end|>\n"
    )
    assert find_end_token(template, tokenizer, None) == "<|end|>"
    assert ids == auto_of(tmp_path, files).apply_chat_template(talk, return_dict=False)
    prompt = template.encode(tokenizer, TALK[:1], add_generation_prompt=True)
    assert template.encode(tokenizer, TALK)[: len(prompt)] == prompt
    assert chat_files(files, DialogueConfig(), None) == files


def test_what_shows_no_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"writes no special token after an answer.*task\.new_tokens"):
        chat_files(base_files(), DialogueConfig(), PLAIN)
    with pytest.raises(InputError, match=r"writes no special token after an answer"):
        chat_files(base_files(), DialogueConfig(new_tokens=CONTROL), ENDLESS)
    with pytest.raises(InputError, match=r"^task\.chat_template: its chat template is no valid Jinja"):
        chat_files(base_files(), DialogueConfig(new_tokens=CONTROL), "{% for %}")
    with pytest.raises(InputError, match=r"^model\.path: the model came without a chat template.*task\.chat_template="):
        chat_files(base_files(), DialogueConfig(), None)
