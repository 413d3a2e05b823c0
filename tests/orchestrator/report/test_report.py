"""`orchestrator report`: a page that needs no network, from the files of runs and stages alone."""

import json
import math
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main
from orchestrator.runs.history import History
from orchestrator.storage.store import Storage

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> ünï 文"


class Page(HTMLParser):
    """The elements of a page, their attributes and their texts; tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def write(root: Storage, name: str, value: Any) -> None:
    root.write_bytes(name, json.dumps(value).encode())


def write_run(
    root: Storage,
    name: str,
    *,
    width: int = 64,
    num_steps: int = 40,
    metrics: dict[str, float] | None = None,
    events: Sequence[dict[str, Any]] = (),
    sample: str = "once upon",
) -> None:
    """Write what a run leaves, as its driver and its workers do."""
    folder, began = f"runs/{name}", time.time() - 7200
    write(root, f"{folder}/recipe.json", {"command": "pretrain", "training": {"num_steps": 40}})
    root.write_bytes(f"{folder}/config.yaml", f"model:\n  hidden_dim: {width}\n  num_layers: 2\n".encode())
    for number, event in enumerate(events):
        write(
            root,
            f"{folder}/events/{number:017d}-{event['kind']}-0000.json",
            {**event, "time": began + event["time"]},
        )
    with History(root, folder) as history:
        history.record({"kind": "begin", "step": 0})
        for step in range(1, num_steps + 1):
            figures = {"train/loss": 5 - step / 10, "optimizer/lr": 1e-3, "throughput/tokens_per_second": 1000.0}
            history.record({"kind": "step", "step": step, "metrics": figures})
            if step % 20 == 0:
                samples = [f"{sample} {step}"]
                history.record({"kind": "validation", "step": step, "metrics": {"val/loss": 4.0}, "samples": samples})
    if metrics is not None:
        write(root, f"{folder}/metrics.json", metrics)


EVENTS = (
    {"kind": "launch", "time": 0},
    {"kind": "begin", "time": 40, "step": 0},
    {"kind": "checkpoint", "time": 500, "step": 20, "seconds": 5, "loss": 3, "training_seconds": 400},
    {"kind": "fault", "time": 600, "text": "worker 1: killed by <SIGKILL>"},
    {"kind": "begin", "time": 630, "step": 20},
    {"kind": "skip", "time": 700, "step": 29, "reason": "spike"},
    {"kind": "end", "time": 1000, "step": 40, "seconds": 1000, "training_seconds": 350},
)
LABELS = ["json", HOSTILE, "xml"]
EVALUATION = {
    "classification": {
        "0f": {
            "settings": {"split": "test", "seed": 1},
            "metrics": {"classification/accuracy": 0.8125, "classification/auroc": None},
            "details": {
                "labels": LABELS,
                "confusion": [[13, 2, 0], [1, 17, 0], [0, 4, 19]],
                "samples": [{"question": f"q {HOSTILE}", "reference": None, "answer": "an answer"}],
            },
            "model": {"path": "some/model"},
            "created": "2026-01-02T03:04:05+00:00",
        }
    }
}


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "outputs"))


def page_of(root: Storage, *words: str) -> tuple[str, Page]:
    to = f"{root.url()}/page"
    assert main(["report", f"storage.root={root.url()}", f"to={to}", *words]) == 0
    text = (Path(to) / "index.html").read_text(encoding="utf-8")
    return text, Page(text)


def row_of(page: Page, text: str) -> list[str]:
    """Return the texts of cells after a row's title."""
    texts = [found for _, found in page.texts]
    start = texts.index(text)
    return texts[start + 1 : start + 8]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    root = Storage(str(tmp_path_factory.mktemp("two")))
    write_run(root, "a", metrics={"train/loss": 1.25, "progress/step": 40, "throughput/mfu": 0.0}, events=EVENTS)
    write_run(root, "b", width=128, metrics={"train/loss": 1.5, "val/perplexity": 7.25}, sample=HOSTILE)
    return page_of(root, "runs=[a,b]")


def test_page_is_whole_and_loads_and_runs_nothing(two: tuple[str, Page]) -> None:
    text, page = two
    assert not re.findall(r"https?:|//[a-z]+\.|@import|url\((?!#)|fetch\(|<link|<script|<iframe|<object", text)
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    attributes = {name for _, found in page.elements for name in found}
    assert not any(name.startswith("on") or name in {"src", "href", "srcset", "action"} for name in attributes)
    policy = next(found["content"] for tag, found in page.elements if tag == "meta" and "http-equiv" in found)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_text_of_a_model_stays_text(two: tuple[str, Page]) -> None:
    assert f"{HOSTILE} 40" in two[1].of("pre")
    assert f"{HOSTILE} 20" in two[1].of("pre")


def test_every_drawing_is_well_formed_with_finite_places(two: tuple[str, Page]) -> None:
    drawings = re.findall(r"<svg.*?</svg>", two[0], flags=re.DOTALL)
    assert len(drawings) > 6
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing.lower()
        assert "inf" not in drawing.lower().replace("information", "")


def test_runs_are_drawn_over_one_another_with_a_legend_units_and_marks(two: tuple[str, Page]) -> None:
    text, page = two
    titles = [title.split("<")[0].strip() for title in page.of("figcaption")]
    assert titles[:4] == ["Training loss", "Validation loss", "Learning rate", "Tokens per second"]
    (first,) = re.findall(r"<figure><figcaption>Training loss.*?</figure>", text, flags=re.DOTALL)
    assert "nats per token" in first
    assert "dotted: faults and restarts" in first
    curves = re.findall(r'class="curve c(\d)"[^>]* d="M([^"]+)"', first)
    assert [colour for colour, _ in curves] == ["0", "1"]
    assert curves[0][1] == curves[1][1]
    assert "a: worker 1: killed by &lt;SIGKILL&gt;" in first
    assert page.of("li") == ["a", "b"]


def test_figures_that_are_not_known_are_left_out(two: tuple[str, Page]) -> None:
    text, _ = two
    figures = text.partition("<h2>Final figures</h2>")[2]
    assert re.findall(r"train/loss</th>(.*?)</tr>", figures) == [
        '<td class="number">1.25</td><td class="number">1.5</td>'
    ]
    row = re.findall(r"val/perplexity</th>(.*?)</tr>", text)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["", "7.25"]
    assert "throughput/mfu" not in text


def test_settings_that_differ_are_shown_and_others_are_not(two: tuple[str, Page]) -> None:
    rows = re.findall(r'class="run">.*?</svg>([ab])</th><td>(.*?)</td>(.*?)</tr>', two[0].partition("Comparison")[2])
    cells = {label: re.findall(r">([^<>]+)</td>", cells) for label, _, cells in rows}
    assert cells == {"a": ["1.25", "64"], "b": ["1.5", "128"]}  # by train/loss, which both have
    assert "num_layers" not in two[0]


def test_time_faults_and_restarts_are_those_of_the_events(two: tuple[str, Page]) -> None:
    page = two[1]
    shares = {what: row_of(page, what)[:2] for what in ("steps that count", "waiting for checkpoints", "start")}
    assert shares == {
        "steps that count": ["12 min 30 s", "75.0 %"],
        "waiting for checkpoints": ["5.0 s", "0.5 %"],
        "start": ["40.0 s", "4.0 %"],
    }
    assert row_of(page, "from a fault until training began again")[:2] == ["30.0 s", "3.0 %"]
    assert row_of(page, "worker 1: killed by <SIGKILL>")[0] == "30.0 s"
    assert "step skipped: spike" in page.of("td")


def test_run_without_history_events_or_metrics_is_shown_with_what_there_is(root: Storage) -> None:
    write(root, "runs/old/recipe.json", {"command": "finetune", "training": {"num_steps": 10}})
    _, page = page_of(root, "runs=old")
    assert "finetune" in page.of("td")
    assert page.of("h2") == ["Runs"]


def test_run_that_goes_on_shows_its_newest_figures(root: Storage) -> None:
    write_run(root, "a", num_steps=25)
    _, page = page_of(root, "runs=a")
    assert "25 of 40" in page.of("td")
    assert row_of(page, "train/loss")[0] == "2.5"


def test_stages_of_a_pipeline_are_runs_evaluations_and_a_graph(root: Storage, tmp_path: Path) -> None:
    write_run(root, "demo/base-0123abcd", metrics={"train/loss": 1.0})
    write(root, "runs/demo/base-0123abcd/stage.json", {"command": "pretrain"})
    write(root, "runs/demo/score-89abcdef/stage.json", {"command": "evaluate"})
    write(root, "runs/demo/score-89abcdef/evaluation.json", EVALUATION)
    stages = {
        "base": {"command": "pretrain", "state": "done", "seconds": 3725, "inputs": []},
        "score": {"command": "evaluate", "state": "failed", "seconds": None, "inputs": ["base", "elsewhere"]},
        HOSTILE: {"command": "report", "state": "waiting", "inputs": ["base", "score"]},
    }
    (tmp_path / "graph.json").write_text(json.dumps({"stages": stages}))
    folders = f"stages=[runs/demo/base-0123abcd,{root.url()}/runs/demo/score-89abcdef]"
    text, page = page_of(root, folders, f"graph={tmp_path}/graph.json")
    assert page.of("h1") == ["base"]
    assert row_of(page, "classification/accuracy")[0] == "0.8125"
    assert "classification/auroc" not in text
    cells = re.findall(r'style="--share:([^"]+)">(\d*)</td>', text)
    assert [count for _, count in cells] == ["13", "2", "", "1", "17", "", "", "4", "19"]
    assert [share for share, _ in cells[-2:]] == ["0.174", "0.826"]
    assert HOSTILE in page.of("th")
    assert page.of("pre")[:2] == [f"q {HOSTILE}", "an answer"]
    (drawing,) = re.findall(r'<svg[^>]*aria-label="Graph of the stages".*?</svg>', text, flags=re.DOTALL)
    assert len(re.findall(r'class="link"', drawing)) == 3
    assert "done, 1 h 02 min" in drawing
    assert "failed</text>" in drawing
    boxes = re.findall(r'<rect class="box [^"]*" x="([\d.]+)" y="([\d.]+)"', drawing)
    assert [float(y) for _, y in boxes] == sorted(float(y) for _, y in boxes)
    assert len(set(boxes)) == 3


def test_stages_of_one_name_are_told_apart_by_their_folders(root: Storage) -> None:
    for name in ("one/base-0123abcd", "two/base-0123abcd", "two/other-0123abcd"):
        write_run(root, name, num_steps=2)
    _, page = page_of(root, "stages=[runs/one/base-0123abcd,runs/two/base-0123abcd,runs/two/other-0123abcd]")
    assert page.of("li") == ["one/base-0123abcd", "two/base-0123abcd", "other"]


def test_evaluation_beside_a_runs_model_is_shown_once(root: Storage) -> None:
    write_run(root, "a", metrics={"train/loss": 1.0})
    write(root, "runs/a/model/evaluation.json", EVALUATION)
    write(root, "runs/score-89abcdef/evaluation.json", EVALUATION)
    _, page = page_of(root, "runs=a", "stages=runs/score-89abcdef")
    assert page.of("h2").count("Evaluation: classification") == 1


def test_matrix_of_many_labels_becomes_a_list_of_its_worst_confusions(root: Storage) -> None:
    labels = [f"label {number}" for number in range(60)]
    confusion = [[5 if row == column else 0 for column in range(60)] for row in range(60)]
    confusion[3][9] = 8
    entry = {**EVALUATION["classification"]["0f"], "details": {"labels": labels, "confusion": confusion}}
    write(root, "runs/score/evaluation.json", {"classification": {"0f": entry}})
    _, page = page_of(root, "stages=runs/score")
    assert "Most frequent confusions of 60 labels" in page.of("h3")
    assert row_of(page, "label 3")[:2] == ["label 9", "8"]


def test_page_of_long_runs_stays_small(root: Storage) -> None:
    write(root, "runs/a/recipe.json", {"command": "pretrain"})
    with History(root, "runs/a") as history:
        for step in range(20_000):
            figures = {"train/loss": math.sin(step), "optimizer/grad_norm": math.cos(step) + 2}
            history.record({"kind": "step", "step": step, "metrics": figures})
    text, _ = page_of(root, "runs=a")
    assert len(text) < 200_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to report on: name runs=[NAME] or stages=[FOLDER]; `orchestrator runs` lists all"),
        (["runs=aa"], "runs=aa: no such run in {root}/runs; did you mean a?"),
        (["stages=runs/x/y"], "stages=runs/x/y: no such folder in {root}, or it is empty; correct the path"),
        (["runs=a", "graph={root}/runs/a/recipe.json"], "is no graph; it must hold"),
        (["runs=a", "graph={root}/nothing.json"], "{root}/nothing.json"),
        (["runs=a", "graph={root}/circle.json"], "its stages need one another in a circle"),
        (["runs=a", "to={root}/runs/a"], "holds other files, and nothing is overwritten"),
    ],
)
def test_mistake_is_explained_and_nothing_is_written(
    words: list[str], message: str, root: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(root, "a")
    write(root, "circle.json", {"stages": {"a": {"inputs": ["b"]}, "b": {"inputs": ["a"]}}})
    words = [word.replace("{root}", root.url()) for word in words]
    assert main(["report", f"storage.root={root.url()}", *words]) == 2
    assert message.replace("{root}", root.url()) in capsys.readouterr().err
    assert not root.exists("reports")


def test_page_is_written_again_in_its_place(root: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(root, "a", num_steps=10)
    for num_steps in (10, 20):
        write_run(root, "a", num_steps=num_steps)
        assert main(["report", f"storage.root={root.url()}", "runs=a"]) == 0
        (place,) = re.findall("report: (.*)", capsys.readouterr().out)
        assert f"{num_steps} of 40" in Path(place).read_text()
    assert len(root.list("reports")) == 1


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    root = Storage(str(tmp_path_factory.mktemp("many")))
    for number in range(12):
        write_run(
            root,
            f"sweep/{number:05d}",
            width=number,
            metrics={"val/loss_clm": 5 - number / 10, "train/loss": number},
            num_steps=2,
        )
    write_run(root, "sweep/00012", width=12, num_steps=2)
    return page_of(root, f"runs=[{','.join(f'sweep/{number:05d}' for number in range(13))}]")


def test_runs_are_compared_by_what_differs_the_best_one_first(many: tuple[str, Page]) -> None:
    texts = [text for _, text in many[1].texts]
    begin = texts.index("Comparison")
    end = texts.index("Curves")
    assert "in the order of val/loss_clm" in texts[begin + 1]
    labels = [text for text in texts[begin:end] if text.startswith("sweep/")]
    assert labels == [*(f"sweep/{number:05d}" for number in range(11, -1, -1)), "sweep/00012"]
    assert "model.hidden_dim" in texts[begin:end]
    assert "Settings that differ" not in texts


def test_of_more_runs_than_colours_the_best_have_one_each_and_the_others_are_grey(many: tuple[str, Page]) -> None:
    text, page = many
    legend = text.partition('<ul class="legend">')[2].partition("</ul>")[0]
    assert re.findall(r"curve c(\d)", legend) == [*"01234567"]
    assert [found for found in page.of("li") if found.startswith("sweep/")] == [
        f"sweep/{number:05d}" for number in range(11, 4, -1)
    ]
    assert "the other 6" in page.of("li")
    drawing = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)[0]
    assert re.findall(r'"curve c(\d)', drawing)[:6] == ["7"] * 6  # below the others


def test_settings_of_runs_that_are_no_variants_of_one_another_are_a_table_of_their_own(root: Storage) -> None:
    write_run(root, "a", num_steps=2)
    write_run(root, "b", num_steps=2)
    config = "".join(f"{name}: 1\n" for name in "abcdefghijklmn")
    root.write_bytes("runs/b/config.yaml", config.encode())
    page = page_of(root, "runs=[a,b]")[1]
    assert "Settings that differ" in page.of("h2")
    assert "Comparison" not in page.of("h2")
