"""Tasks for lm-evaluation-harness and tiny models to measure on them, all made on the spot."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from published_models import KINDS
from tiny_run import write_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END = "<s>", "</s>"
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "sleeps")
TASKS = ("choices", "cloze", "texts", "answers")


def write_model(folder: Path, kind: str, chat_template: str | None = None) -> Path:
    """Write a tiny model with random weights; the Llama has a token that begins each text, the GPT-2 none."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    tokenizer = _tokenizer(folder.parent, begins=kind == "llama")
    names = {"bos_token": BEGIN if kind == "llama" else END, "eos_token": END}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.token_to_id(END), "bos_token_id": tokenizer.token_to_id(names["bos_token"])}
    settings = {**KINDS[kind], **ids, "vocab_size": tokenizer.get_vocab_size()}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def write_tasks(folder: Path) -> Path:
    """Write four tasks: choices, cloze, texts that are longer than 64 tokens, and answers to generate."""
    write_task(
        folder,
        "choices",
        [_choice(number) for number in range(12)],
        output_type="multiple_choice",
        training_split="test",
        num_fewshot=1,
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        doc_to_target="label",
        metric_list=[_mean("acc"), _mean("acc_norm")],
    )
    rows = [{"text": _words(number, 9), "last": WORDS[number % 7]} for number in range(8)]
    write_task(
        folder,
        "cloze",
        rows,
        output_type="loglikelihood",
        doc_to_text="{{text}}",
        doc_to_target="{{last}}",
        metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, _mean("acc")],
    )
    rolling = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    write_task(
        folder,
        "texts",
        [{"text": _words(number, 10 + 60 * number)} for number in range(4)],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": name} for name in rolling],
    )
    write_task(
        folder,
        "answers",
        [{"question": _words(number, 3 + 12 * number), "answer": "the"} for number in range(6)],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["e", "\n\n"], "max_gen_toks": 12},
        metric_list=[_mean("exact_match")],
    )
    return folder


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Write a task and its rows; a setting of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    usual = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    task = {"task": name, **usual, "metadata": {"version": 2.0}, **settings}
    text = yaml.safe_dump({key: value for key, value in task.items() if value is not None}, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text.replace("'!function", "!function").replace(".fn'", ".fn"), "utf-8")


def _choice(number: int) -> dict[str, Any]:
    # two of one token, which are answered by one computation, and longer ones; every third question is cut on the left
    choices = [WORDS[number % 12], WORDS[(number + 1) % 12], _words(number, 3), "zz"]
    return {"question": _words(number, 80 if number % 3 == 0 else 5), "choices": choices, "label": number % 4}


def _words(start: int, number: int) -> str:
    return " ".join(WORDS[(start * 5 + place * place) % 12] for place in range(number))


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _tokenizer(folder: Path, begins: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [BEGIN, END] if begins else [END]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.train([str(write_text(folder / "text-of-the-tokenizer.txt", 500))], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[BEGIN, "$A"], pair=[BEGIN, "$A", "$B:1"], special_tokens=[(BEGIN, 0)]
        )
    return tokenizer
