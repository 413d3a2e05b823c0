import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import eventually

from modules.config import DataConfig, TokenizerConfig
from modules.data import pieces
from modules.data.encoder_pool import EncoderPool
from modules.data.encoding import Passage
from modules.data.prepare import prepare_tokens
from modules.data.shards import TokenData
from modules.data.stdlib import LocalFile
from modules.errors import InputError

DOCUMENTS = [f"Document {i} says größe <|endoftext|> " + f"word{i} " * (i % 50) for i in range(400)]
BYTE = TokenizerConfig(kind="byte")


def files(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [LocalFile(str(folder), name, len(content)) for name, content in contents.items()]


def rows(documents):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)


def prepared(tmp_path, sources, data=None, tokenizer=BYTE, name="out"):
    folder = tmp_path / name
    folder.mkdir()
    done = []
    data = DataConfig(**{"num_processes": 1, **(data or {})})
    prepare_tokens(sources, data, tokenizer, None, folder, lambda *counts: done.append(counts))
    return folder, done


def decoded(stream, tokenizer):
    tokens = np.empty((1, len(stream)), dtype=np.int64)
    stream.fill(np.array([0]), len(stream), tokens)
    stops = [*stream.document_starts[1:], len(stream)]
    assert all(tokens[0][stop - 1] == tokenizer.end_of_text_id for stop in stops)
    ranges = zip(stream.document_starts, stops, strict=True)
    return [tokenizer.decode(tokens[0][start : stop - 1].tolist()) for start, stop in ranges]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path):
    packed = {"a.jsonl": rows(DOCUMENTS[:200]), "b.jsonl.gz": gzip.compress(rows(DOCUMENTS[200:]))}
    return files(tmp_path / "source", packed)


def test_every_document_comes_back_in_order_on_one_side(tmp_path, source):
    folder, done = prepared(tmp_path, source, {"val_fraction": 0.3})
    data = TokenData.open(folder)
    train, val = (decoded(stream, data.tokenizer) for stream in (data.train, data.val))
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert train == [text for text in DOCUMENTS if text in set(train)]
    assert 80 < len(val) < 160  # 120 expected, standard deviation 9
    sizes = {"train": sum(len(text.encode()) for text in train), "val": sum(len(text.encode()) for text in val)}
    assert data.num_bytes == sizes
    assert done[-1] == (sum(sizes.values()), len(data.train) + len(data.val))


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_the_output_is_the_same_bytes_on_any_number_of_processes(tmp_path, source, monkeypatch, kind):
    monkeypatch.setattr(pieces, "BATCH_BYTES", 5000)
    tokenizer = TokenizerConfig(kind=kind, vocab_size=400)
    made = [
        contents(prepared(tmp_path, source, {"val_fraction": 0.3, "num_processes": n}, tokenizer, f"out{n}")[0])
        for n in (1, 2, 3)
    ]
    assert made[0] == made[1] == made[2]


def test_rows_without_text_are_counted_told_and_recorded(tmp_path, caplog):
    lines = b'{"text": "a"}\n{"text": null}\n{"text": ""}\n{"body": "b"}\n{"text": "c"}\n'
    sources = files(tmp_path / "s", {"a.jsonl": lines})
    for split, val_fraction in {"document": 0, "position": 0.5}.items():  # the latter reads the text twice
        data = {"val_fraction": val_fraction, "split": split, "missing": "skip"}
        folder, _ = prepared(tmp_path, sources, data, name=split)
        assert json.loads((folder / "data.json").read_bytes())["rows_without_text"] == 3
    told = "data: left out 3 of 5 rows, which have no text; the first is a.jsonl:2: field 'text' is null"
    assert [record.getMessage() for record in caplog.records] == [told] * 2
    with pytest.raises(InputError, match=r"^a\.jsonl:2: field 'text' is null"):
        prepared(tmp_path, sources, name="refused")


def test_equal_documents_fall_on_the_same_side(tmp_path):
    documents = [text for text in DOCUMENTS[:40] for _ in range(3)]
    folder, _ = prepared(tmp_path, files(tmp_path / "s", {"a.jsonl": rows(documents)}), {"val_fraction": 0.3})
    data = TokenData.open(folder)
    assert not set(decoded(data.train, data.tokenizer)) & set(decoded(data.val, data.tokenizer))


def test_splitting_by_position_holds_out_the_end_of_the_stream(tmp_path):
    text = "0123456789" * 10_000
    folder, _ = prepared(
        tmp_path, files(tmp_path / "s", {"a.txt": text.encode()}), {"split": "position", "val_fraction": 0.1}
    )
    data = TokenData.open(folder)
    assert decoded(data.train, data.tokenizer) == [text[:90_000]]
    assert decoded(data.val, data.tokenizer) == [text[90_000:]]


def test_splitting_by_position_works_over_several_documents(tmp_path, source):
    folder, _ = prepared(tmp_path, source, {"split": "position", "val_fraction": 0.25})
    data = TokenData.open(folder)
    train, val = decoded(data.train, data.tokenizer), decoded(data.val, data.tokenizer)
    assert "".join(train + val) == "".join(DOCUMENTS)
    assert data.num_bytes["val"] == pytest.approx(0.25 * sum(data.num_bytes.values()), abs=2)


def test_a_long_document_in_pieces_has_the_tokens_of_the_whole(tmp_path):
    text = "It's a long story, told in many words; größe 123.\n\n" * 2000
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=400)
    folder, _ = prepared(tmp_path, files(tmp_path / "s", {"a.txt": text.encode()}), {"val_fraction": 0}, tokenizer)
    data = TokenData.open(folder)
    tokens = np.empty((1, len(data.train)), dtype=np.int64)
    data.train.fill(np.array([0]), len(data.train), tokens)
    assert tokens[0].tolist() == [*data.tokenizer.encode(text), data.tokenizer.end_of_text_id]
    assert len(data.val) == 0
    assert data.num_bytes == {"train": len(text.encode()), "val": 0}


def test_max_bytes_is_reached_to_the_character(tmp_path, source):
    folder, _ = prepared(tmp_path, source, {"max_bytes": 5001, "val_fraction": 0})
    data = TokenData.open(folder)
    read = decoded(data.train, data.tokenizer)
    assert "".join(DOCUMENTS).startswith("".join(read))
    assert 4998 <= data.num_bytes["train"] == len("".join(read).encode()) <= 5001


def test_max_bytes_reads_no_further_file(tmp_path):
    sources = files(tmp_path / "s", {"a.txt": b"x" * 100, "b.txt": b"\xff"})
    prepared(tmp_path, sources, {"max_bytes": 100, "val_fraction": 0})


def test_the_tokenizer_never_sees_held_out_text(tmp_path):
    text = "a" * 900 + "ż" * 50
    folder, _ = prepared(
        tmp_path,
        files(tmp_path / "s", {"a.txt": text.encode()}),
        {"split": "position", "val_fraction": 0.1},
        TokenizerConfig(kind="char"),
    )
    data = TokenData.open(folder)
    assert decoded(data.val, data.tokenizer) == ["\ufffd" * 50]


def test_the_fingerprint_changes_with_a_token_and_only_then(tmp_path):
    made = [
        prepared(tmp_path, files(tmp_path / f"s{i}", {name: text}), {"val_fraction": 0}, name=f"o{i}")[0]
        for i, (name, text) in enumerate([("a.txt", b"abc"), ("b.md", b"abc"), ("a.txt", b"abd")])
    ]
    prints = [TokenData.open(folder).fingerprint for folder in made]
    assert prints[0] == prints[1] != prints[2]


def test_tokens_take_two_bytes_where_they_fit(tmp_path):
    characters = "".join(chr(code) for code in range(0x10000, 0x10000 + 70_000))
    for text, num_bytes in (("abc", 2), (characters, 4)):
        source = files(tmp_path / f"s{num_bytes}", {"a.txt": text.encode()})
        folder, _ = prepared(tmp_path, source, {"val_fraction": 0}, TokenizerConfig(kind="char"), f"o{num_bytes}")
        assert (folder / "train_00000.bin").stat().st_size == num_bytes * (len(text) + 1)
        data = TokenData.open(folder)
        assert decoded(data.train, data.tokenizer) == [text]


def test_one_document_split_by_document_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"the (val|train) split is empty.*set data\.split=position"):
        prepared(tmp_path, files(tmp_path / "s", {"a.txt": b"some text"}))


def test_an_unknown_ending_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="unknown ending"):
        prepared(tmp_path, files(tmp_path / "s", {"a.txt": b"x", "b.pdf": b"x"}))
    assert not list((tmp_path / "out").iterdir())


def encoders(process=None):
    """The tokenising processes that a process has started and that still run."""
    return [child for child in (process or psutil.Process()).children() if "encoder_process" in _command(child)]


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def prepare_in_two(tmp_path, sources, progress):
    (tmp_path / "out").mkdir()
    prepare_tokens(sources, DataConfig(num_processes=2), BYTE, None, tmp_path / "out", progress)


def test_a_bad_file_in_the_middle_leaves_no_process_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BATCH_BYTES", 1000)
    sources = files(tmp_path / "s", {"a.jsonl": rows(DOCUMENTS), "b.txt": b"abc\xff"})
    alive = []
    with pytest.raises(InputError, match=r"b\.txt: byte 3"):
        prepare_in_two(tmp_path, sources, lambda *_: alive.append(len(encoders())))
    assert set(alive) == {2}
    assert not encoders()


def test_a_killed_process_is_told_and_leaves_no_other_behind(tmp_path, source, monkeypatch):
    monkeypatch.setattr(pieces, "BATCH_BYTES", 1000)
    with pytest.raises(RuntimeError, match="ended with code -9"):
        prepare_in_two(tmp_path, source, lambda *_: [process.kill() for process in encoders()])
    assert not encoders()


def test_no_more_processes_start_than_there_are_batches(tmp_path, source):
    folder, _ = prepared(tmp_path, source)
    with EncoderPool(folder / "tokenizer.json", np.dtype("<u2"), 8) as pool:
        assert [tag for _, tag in pool.encode([([Passage("text")], 0), ([Passage("text")], 1)])] == [0, 1]
        assert 1 <= len(encoders()) <= 2


ENDLESS = """
import signal
import sys
from pathlib import Path
import numpy as np
from modules.data.encoder_pool import EncoderPool
from modules.data.encoding import Passage
signal.signal(signal.SIGINT, signal.default_int_handler)  # however the tests were started
with EncoderPool(Path(sys.argv[1]), np.dtype("<u2"), 2) as pool:
    for _, n in pool.encode(([Passage("text")], n) for n in range(10**9)):
        if n == 10:
            print("started", flush=True)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them_and_leave_ctrl_c_to_it(tmp_path, source, number):
    folder, _ = prepared(tmp_path, source)
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder / "tokenizer.json")],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "started\n"
        started = encoders(psutil.Process(process.pid))
        # Ctrl-C goes to every process in the terminal
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, len(started)) == (-number, 2)
    assert said.count("Traceback") == said.count("KeyboardInterrupt") == (number == signal.SIGINT)
    assert eventually(lambda: not any(_is_running(child.pid) for child in started), seconds=20)


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_failing_progress_callback_leaves_no_process_behind(tmp_path, source, monkeypatch):
    monkeypatch.setattr(pieces, "BATCH_BYTES", 1000)

    def fail(*_):
        assert encoders()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_in_two(tmp_path, source, fail)
    assert not encoders()


def test_data_prepared_before_bytes_were_counted_is_read(tmp_path):
    """Earlier versions wrote no bytes beside the tokens of any tokenizer."""
    for name, text, known in (("a", "abc" * 50, True), ("b", "abc" * 60 + "ż" * 10, False)):
        source = files(tmp_path / name, {"a.txt": text.encode()})
        data = {"split": "position", "val_fraction": 0.1}
        folder, _ = prepared(tmp_path, source, data, TokenizerConfig(kind="char"), f"out_{name}")
        before = TokenData.open(folder)
        description = json.loads((folder / "data.json").read_text())
        for entry in description["splits"]["val"].pop("token_bytes"):
            (folder / entry["name"]).unlink()
        (folder / "data.json").write_text(json.dumps(description))
        opened = TokenData.open(folder)
        length = len(opened.val)
        assert before.val.num_bytes(np.array([0]), length) == before.num_bytes["val"]
        assert opened.val.num_bytes(np.array([0]), length) == (opened.num_bytes["val"] if known else None)
