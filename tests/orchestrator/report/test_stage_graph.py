"""The drawn graph of a pipeline's stages."""

import re

import pytest

from orchestrator.report.stage_graph import stage_graph


@pytest.mark.parametrize("inputs", [["base", "middle"], ["base", "left", "middle", "right"]])
def test_an_arrow_past_other_stages_stays_within_the_picture(inputs: list[str]) -> None:
    stages = {
        "base": {"inputs": []},
        **{name: {"inputs": ["base"]} for name in inputs[1:]},
        "last": {"inputs": [inputs[-1]]},
        "page": {"inputs": [*inputs, "last"]},
    }
    graph = stage_graph(stages)
    assert len(graph.paths) == sum(len(stage["inputs"]) for stage in stages.values())
    places = [float(x) for path in graph.paths for x in re.findall(r"([-\d.]+) [-\d.]+", path)]
    assert min(places) >= 0
    assert max(places) <= graph.width
