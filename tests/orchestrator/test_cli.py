"""The command line: what Hydra composes reaches the command, and mistakes reach the user."""

import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modules.errors import InputError
from orchestrator.cli import main
from orchestrator.cli.command import COMMANDS
from orchestrator.cli.program import DONE, FAILURE, MISTAKE
from orchestrator.configuration.commands import (
    EvaluateConfig,
    GenerateConfig,
    PretrainConfig,
    PruneRunsConfig,
    RunsConfig,
)
from orchestrator.display import streams
from orchestrator.distributed.runtime import STOP_SIGNALS
from orchestrator.errors import ArtifactError, HardwareError, exit_code
from orchestrator.training.callbacks import watchdog

Started = list[Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> Started:
    """Collect the configurations that commands are started with, in an empty folder."""
    configs: Started = []
    for name in COMMANDS:
        replace_command(monkeypatch, name, lambda config, *_: configs.append(config))
    return configs


def replace_command(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[..., None]) -> None:
    module = types.ModuleType(f"orchestrator.commands.{name}")
    vars(module)["run"] = run
    monkeypatch.setitem(sys.modules, module.__name__, module)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the lines of the message that `arguments` are refused with."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err.rstrip().splitlines()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said and command.summary in said for name, command in COMMANDS.items())


def test_every_command_has_its_class_its_primary_config_and_its_module() -> None:
    root = Path(__file__).resolve().parents[2]
    for name, command in COMMANDS.items():
        assert hasattr(importlib.import_module("orchestrator.configuration.commands"), command.config)
        assert (root / "conf" / f"{name}.yaml").is_file()
        for kind, primary in command.seconds.values():
            assert hasattr(importlib.import_module("orchestrator.configuration.commands"), kind)
            assert (root / "conf" / f"{primary}.yaml").is_file()
        assert (root / "orchestrator" / "commands" / f"{name}.py").is_file()


def test_no_command_prints_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: orchestrator COMMAND" in refused(capsys)[2]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("orchestrator ")


def test_misspelt_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "pretrian") == ["error: pretrian: no such command; did you mean pretrain?"]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_shows_fields_with_their_explanations(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[command].summary in said
    with_root = ("run", "runs", "batch", "doctor", "evaluate", "compare", "explain", "export", "report")
    jobs = dict.fromkeys(("jobs", "logs", "stop"), "allow_insecure false")
    others = {
        "predict": "split all",
        "submit": "submit.environment none",
        **jobs,
        **dict.fromkeys(with_root, "storage.root outputs"),
    }
    assert others.get(command, "seed 1234") in said


def test_command_help_shows_groups_their_options_and_the_present_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "model=gpt2_124m", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GPT-2 small" in said
    assert "model.hidden_dim 768 Width of the residual stream." in said


def test_command_gets_its_validated_configuration(started: Started) -> None:
    overrides = ["model=gpt2_124m", "+experiment=shakespeare_char", "data.path=[a.txt,b.txt]", "strategy=zero2"]
    assert main(["pretrain", *overrides, "model.num_layers=2", "cluster=ray", "cluster.num_workers=2"]) == 0
    (config,) = started
    assert isinstance(config, PretrainConfig)
    assert config.data.path == ("a.txt", "b.txt")
    assert (config.model.num_layers, config.strategy.zero_stage, config.cluster.num_workers) == (2, 2, 2)


def test_experiment_is_chosen_with_and_without_a_plus(started: Started) -> None:
    for override in ("+experiment=quickstart", "experiment=quickstart"):
        assert main(["pretrain", override]) == 0
    assert started[0] == started[1]
    assert started[0].run.name == "quickstart"


@pytest.mark.parametrize(
    "prompt",
    [
        "Hello, my dog is cute",
        'What\'s "up" (here)? [a] {b} \\ c\\',
        "two\nlines ",
        "42",
        "true",
        "a=b, c = d # e",
        "",
        "null",
        "${HOME} and \\\\${HOME}\\",
        "${",
        "'Hi,' she said, 'go'",
        "Größe",
    ],
)
def test_text_arrives_word_for_word(prompt: str, started: Started) -> None:
    assert main(["generate", "model.path=somewhere", f"prompt={prompt}"]) == 0
    (config,) = started
    assert isinstance(config, GenerateConfig)
    assert config.prompt == prompt


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["data.path=[${HOME}/a,'b ${x}',c d]"], ("${HOME}/a", "b ${x}", "c d")),
        (["data.path='${HOME}'"], ("${HOME}",)),
        (["data.path=a", "data.text_field=${x}"], ("a",)),
    ],
)
def test_text_in_lists_and_quotes_is_taken_literally(
    words: list[str], texts: tuple[str, ...], started: Started
) -> None:
    assert main(["prepare", "data=files", *words]) == 0
    assert started[0].data.path == texts


def test_swept_texts_are_taken_literally(started: Started) -> None:
    assert main(["generate", "-m", "model.path=x", "prompt='a, ${HOME}',b"]) == 0
    assert [config.prompt for config in started] == ["a, ${HOME}", "b"]


@pytest.mark.parametrize("path", ["s3://bucket/corpus/*.jsonl.gz", "/a b/c(1).txt", "~/x@y.txt"])
def test_path_needs_no_quotes(path: str, started: Started) -> None:
    assert main(["evaluate", "model.path=gpt2", "data=files", f"data.path={path}"]) == 0
    (config,) = started
    assert isinstance(config, EvaluateConfig)
    assert config.data is not None
    assert config.data.path == (path,)


@pytest.mark.parametrize(
    ("words", "name", "root"),
    [
        ([], None, "outputs"),
        (["show", "tiny"], "tiny", "outputs"),
        (["show", "tiny", "storage.root=memory://x"], "tiny", "memory://x"),
        (["storage.root=memory://x", "name=show"], "show", "memory://x"),
        (["show", "storage.root=memory://x", "42"], "42", "memory://x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_runs_show_name_is_runs_with_that_name(words: list[str], name: str | None, root: str, started: Started) -> None:
    assert main(["runs", *words]) == 0
    (config,) = started
    assert isinstance(config, RunsConfig)
    assert (config.name, config.storage.root) == (name, root)


@pytest.mark.parametrize(
    ("words", "names"),
    [([], ()), (["one", "two/a-01234567"], ("one", "two/a-01234567")), (["names=one"], ("one",)), (["42"], ("42",))],
)
def test_runs_prune_takes_names(words: list[str], names: tuple[str, ...], started: Started) -> None:
    assert main(["runs", "prune", *words, "storage.root=memory://x"]) == 0
    (config,) = started
    assert isinstance(config, PruneRunsConfig)
    assert (config.names, config.apply, config.storage.root) == (names, False, "memory://x")


def test_deepspeed_settings_are_reachable(started: Started) -> None:
    assert main(["pretrain", "strategy=zero2", "strategy.deepspeed.zero_optimization.overlap_comm=false"]) == 0
    assert started[0].strategy.deepspeed == {"zero_optimization": {"overlap_comm": False}}


def test_all_mistakes_are_reported_in_one_message(capsys: pytest.CaptureFixture[str], started: Started) -> None:
    arguments = ["model=tinny", "model.num_layer=3", "training.num_steps=abc", "stategy=zero2", "cluster.num_workers=0"]
    assert refused(capsys, "pretrain", *arguments) == [
        "error: 5 mistakes:",
        "  model=tinny: no such option; did you mean model=tiny? "
        "(model has gpt2_124m, gpt2_1558m, gpt2_350m, gpt2_774m, gpt3_175b, llama3_8b, llama3p1_8b, "
        "qwen3_0p6b, smollm2_135m, tiny)",
        "  model.num_layer=3: unknown; did you mean model.num_layers?",
        "  stategy=zero2: unknown; did you mean strategy?",
        "  training.num_steps=abc: must be a whole number",
        "  cluster.num_workers=0: must be above 0",
    ]
    assert started == []
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["pretrain", "quickstart"], "did you mean experiment=quickstart?"),
        (["pretrain", "tracking=offline"], "did you mean tracking.mode=offline?"),
        (["pretrain", "data=/some/text.txt"], "did you mean data=files data.path=/some/text.txt?"),
        (["pretrain", "model=null"], "model=null: no such option"),
        (["pretrain", "training={num_steps:3"], "cannot be read"),
        (["pretrain", "training.num_steps=1,2"], "add --multirun"),
        (["pretrain", "data=files,stdlib"], "add --multirun"),
        (["pretrain", "modl/tiny=3"], "no such group"),
        (["pretrain", "~model.nope"], "'model.nope' does not exist"),
        (["pretrain", "hydra.nope=1"], "hydra.nope"),
        (["pretrain", "training.num_steps=${oc.env:NO_SUCH_VARIABLE}"], "NO_SUCH_VARIABLE"),
        (["pretrain", "--config-dir", "nowhere"], "no such folder"),
        (["pretrain", "--config-name", "nope"], "nope"),
        (["pretrain", "--experimental-rerun", "x"], "pickle"),
        (["pretrain", "--cfg", "job", "--package", "nope"], "package 'nope' not found in config"),
        (["pretrain", "--multirun", "hydra.sweep.dir=/dev/null"], "hydra.sweep.dir=/dev/null: cannot be made"),
        (["pretrain", "--shell-completion"], "needs one of install=SHELL"),
        (["pretrain", "-sc", "bash"], "needs one of install=SHELL"),
        (["-sc"], "needs one of install=SHELL"),
        (["pretrain", "--cfg", "job", "--multirun"], "exclude each other"),
        (["pretrain", "--cfg", "job", "model.nope=1"], "model.nope=1: unknown"),
        (["pretrain", "--no-such-flag"], "unrecognized arguments"),
        (["pretrain", "--data.path=https://host/a.txt?sig=SECRET"], "arguments: --data.path=https://host/a.txt?***"),
        (["pretrain", "--cfg=https://host/a.txt?sig=SECRET"], "invalid choice: 'https://host/a.txt?***'"),
        (["pretrain", "data.path=[https://host/a.txt?sig=SECRET]"], "put each item in quotes of its own"),
        (["pretrain", "--multirun", "training.num_steps=5,0"], "training.num_steps=0: must be above 0"),
        (["prepare", "+experiment=quickstart"], "prepare has no such group; it has cluster, data, task, tokenizer"),
        (["evaluate", "model=outputs/model"], "did you mean model.path=outputs/model?"),
        (["evaluate"], "model.path: must be given, as model.path=VALUE"),
        (["runs", "show"], "name: must be given, as name=VALUE"),
        (["runs", "show", "one", "two"], "two: is neither a field nor a group"),
        (["runs", "quickstart"], "quickstart: is neither a field nor a group"),
        (["generate", "model.path=x", "temperature=-1"], "temperature=-1: must be at least 0"),
        (["generate", "model.path=x", "prompt=a\udcff"], "'prompt=a\\udcff': holds bytes that are no UTF-8"),
        (["pretrain", "tracking.project=a\nb"], "error: tracking.project=a\\nb: must not contain '\\n'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_reported_shortly_and_nothing_is_written(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], started: Started
) -> None:
    assert part in " ".join(refused(capsys, *arguments))
    assert started == []
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("text.txt: not UTF-8"), 2, "error: text.txt: not UTF-8\n"),
        (HardwareError("no GPU"), 2, "error: no GPU\n"),
        (ArtifactError("damaged"), 1, "error: damaged\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(143), 143, ""),
        (ZeroDivisionError("a bug"), 1, "Traceback"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_code_says_whose_doing_it_was(
    raised: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_folder: Path,
) -> None:
    def fail(_: Any) -> None:
        raise raised

    replace_command(monkeypatch, "generate", fail)
    assert main(["generate", "model.path=x"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(said) if said == "Traceback" else shown == said


def test_every_exit_code_is_documented() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    of_signals = {exit_code(number) for number in STOP_SIGNALS}
    assert documented == {DONE, FAILURE, MISTAKE, streams.UNREAD, watchdog.EXIT_CODE, *of_signals}


def test_single_run_leaves_nothing_of_hydra(started: Started) -> None:
    assert main(["generate", "model.path=x"]) == 0
    assert list(Path.cwd().iterdir()) == []


def test_multirun_runs_every_combination_and_leaves_nothing_of_hydra(started: Started) -> None:
    assert main(["generate", "--multirun", "model.path=x", "seed=1,2", "top_k=null,5", "prompt='a, b'"]) == 0
    assert [(config.seed, config.top_k) for config in started] == [(1, None), (1, 5), (2, None), (2, 5)]
    assert {config.prompt for config in started} == {"a, b"}
    assert list(Path.cwd().iterdir()) == []


def test_multirun_sweeps_over_options(started: Started) -> None:
    assert main(["pretrain", "-m", "model=tiny,gpt2_124m"]) == 0
    assert [config.model.num_layers for config in started] == [4, 12]


@pytest.mark.parametrize("flags", [[], ["--multirun"]])
def test_overrides_are_in_no_log_of_hydra(
    flags: list[str], started: Started, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert main(["generate", "model.path=s3://KEY:SECRET@bucket/model", *flags]) == 0
    assert len(started) == 1
    assert "SECRET" not in caplog.text + "".join(capsys.readouterr())


def test_multirun_leaves_logging_as_it_was(started: Started) -> None:
    logger = logging.getLogger("somebody.else")
    assert main(["generate", "--multirun", "model.path=x", "seed=1,2"]) == 0
    assert not logger.disabled
    assert logging.getLogger("hydra").level == logging.NOTSET


def test_own_folder_of_options_is_found_first(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("mine/model")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# My own.\ndefaults: [tiny, _self_]\nnum_layers: 7\n", encoding="utf-8")
    assert main(["pretrain", "--config-dir", "mine", "model=mine"]) == 0
    assert started[0].model.num_layers == 7
    assert main(["pretrain", "--config-dir", "mine", "--help"]) == 0
    assert "My own." in capsys.readouterr().out


def test_composed_configuration_is_printed_and_nothing_runs(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "model.num_layers=3", "--cfg", "job", "--package", "model"]) == 0
    assert "num_layers: 3" in capsys.readouterr().out
    assert main(["evaluate", "--cfg", "job"]) == 0
    assert "path: ???" in capsys.readouterr().out
    assert started == []


def test_origin_of_the_configuration_is_printed(capsys: pytest.CaptureFixture[str], started: Started) -> None:
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    assert main(["pretrain", "--info", "defaults-tree", "model=gpt2_124m"]) == 0
    assert "model: gpt2_124m" in capsys.readouterr().out
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
    assert started == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("orchestrator pre", {"predict", "prepare", "pretrain"}),
        ("orchestrator ", set(COMMANDS)),
        ("orchestrator pretrain model=gpt2_1", {"model=gpt2_124m", "model=gpt2_1558m"}),
        ("orchestrator pretrain +experiment=qu", {"+experiment=quickstart"}),
        ("orchestrator pretrain training.num", {"training.num_steps="}),
        ("orchestrator generate num", {"num_beams=", "num_sequences="}),
        ("orchestrator doctor fi", {"fix="}),
        ("orchestrator plan pretrain device=h", {"device=h100", "device=h200"}),
        ("orchestrator plan finetune finetune.pat", {"finetune.patience="}),
    ],
)
def test_shell_completes_commands_options_and_fields(
    line: str, words: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", f"install={shell}"]) == 0
    assert "hydra" in capsys.readouterr().out


def test_termination_closes_what_is_open_and_exits_143(tmp_path: Path) -> None:
    script = """
import sys, time, types
module = types.ModuleType("orchestrator.commands.generate")
def run(config):
    try:
        print("running", flush=True)
        time.sleep(60)
    finally:
        print("closed", flush=True)
module.run = run
sys.modules[module.__name__] = module
from orchestrator.cli import main
sys.exit(main(["generate", "model.path=x"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=_environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "closed\n"
    assert process.wait(timeout=30) == 143
    process.stdout.close()


def test_module_runs_as_the_script_does(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "generate", "model.path=x", "--cfg", "job"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_environment(), check=True)
    assert "path: x" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = """
import json, sys
from orchestrator.cli import main
main(["--help"])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_environment(), check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert (
        loaded & {"torch", "ray", "deepspeed", "wandb", "pytorch_lightning", "transformers", "numpy", "hydra"} == set()
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
