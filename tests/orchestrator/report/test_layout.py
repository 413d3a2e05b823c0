"""Which figures are drawn in which plots."""

from orchestrator.report.layout import missing, panels


def test_only_what_was_found_is_drawn_and_other_figures_of_validations_get_plots_of_their_own() -> None:
    found = ["val/loss_clm", "train/loss", "val/macro_f1", "translation/bleu", "memory/peak_bytes", "progress/tokens"]
    assert [(panel.title, panel.metrics) for panel in panels(found)] == [
        ("Training loss", ("train/loss",)),
        ("Next-token loss", ("val/loss_clm",)),
        ("Translation: bleu", ("translation/bleu",)),
        ("Validation: macro f1", ("val/macro_f1",)),
    ]


def test_a_tasks_loss_is_drawn_over_that_of_its_training() -> None:
    (panel,) = panels(["train/loss_classification", "val/loss_classification"])
    assert panel.title == "Classification loss"
    assert panel.metrics == ("train/loss_classification", "val/loss_classification")
    assert panel.unit == "nats per text"


def test_a_loss_of_texts_is_not_said_to_be_one_of_tokens() -> None:
    assert {
        panel.title: panel.unit for panel in panels(["train/loss", "train/loss_classification", "val/loss_clm"])
    } == {
        "Training loss": "nats",
        "Next-token loss": "nats per token",
    }


def test_what_is_missing_is_named_by_its_plot() -> None:
    found = {"train/loss", "val/loss", "train/loss_clm", "train/loss_mlm", "val/loss_mlm", "optimizer/lr"}
    assert missing(found) == [
        ("Next-token loss", ["val/loss_clm"]),
        ("Gradient norm", ["optimizer/grad_norm"]),
        ("Tokens per second", ["throughput/tokens_per_second"]),
    ]
