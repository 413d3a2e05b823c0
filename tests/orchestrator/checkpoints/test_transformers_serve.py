"""Our export behind the server of `transformers`, asked in OpenAI's form."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from foreign_models import write_model
from waiting import eventually

from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from orchestrator.artifacts.models import TrainedModel, load_model

pytestmark = pytest.mark.slow

_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    write_model(folder, "gpt2", end=0)
    trained = load_model(str(folder))
    trained.tokenizer.save_for_transformers(folder, trained.model.config.max_positions)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Yield a function that sends a request to a server of the folder, started by the line in the README."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    url = f"http://localhost:{port}"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--port", str(port)]
    log = folder.with_name("server.log")
    with log.open("wb") as output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)

    def is_ready() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return requests.get(f"{url}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    def ask(path: str, **body: Any) -> dict[str, Any]:
        answer = requests.post(f"{url}/v1/{path}", json={"model": str(folder), **body}, timeout=60)
        assert answer.ok, log.read_text()
        return answer.json()["choices"][0]

    try:
        assert eventually(is_ready, 60), log.read_text()
        yield ask
    finally:
        server.terminate()
        server.wait(30)


def continued(trained: TrainedModel, prompt: str, num_tokens: int) -> str:
    """Return the greedy continuation by our own `generate`."""
    ids = trained.tokenizer.encode(prompt)
    settings = Sampling(
        max_new_tokens=num_tokens, temperature=0.0, end_ids=trained.end_ids, context_length=trained.context_length
    )
    return trained.tokenizer.decode_after(ids, [int(step[0]) for step in sample(trained.model, [ids], settings)])


def test_a_completion_is_the_text_that_we_generate(folder: Path, ask: Callable[..., dict[str, Any]]) -> None:
    choice = ask("completions", prompt="To be", max_tokens=8, temperature=0)
    assert choice["text"] == continued(load_model(str(folder)), "To be", 8)
    assert choice["text"]


def test_a_chat_is_answered_by_the_template_of_the_folder(folder: Path, ask: Callable[..., dict[str, Any]]) -> None:
    choice = ask("chat/completions", messages=[{"role": "user", "content": "To be"}], max_tokens=8, temperature=0)
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == continued(load_model(str(folder)), "user: To be\nassistant:", 8)
