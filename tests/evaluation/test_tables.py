from dlens_tf.evaluation.tables import bins_table, markdown_table, metrics_table


def estimate(value, error=None):
    return {"value": value, "standard_error": error}


def test_markdown_table():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_metrics_table_leaves_out_empty_columns():
    entry = {
        "difference_unit": "dex",
        "metrics": {"mae": estimate(0.1, 0.01), "nll": estimate(None)},
        "rows": [
            {
                "kind": "model",
                "name": "this model",
                "metrics": {"mae": estimate(0.1, 0.01), "nll": estimate(None)},
                "mae_over_limit": estimate(2.0, 0.3),
            },
            {
                "kind": "published",
                "name": "Net",
                "metrics": {"mae": estimate(0.2)},
                "mae_over_limit": estimate(4.0),
            },
        ],
    }
    assert metrics_table(entry).splitlines() == [
        "| predictor | MAE [dex] | MAE / limit |",
        "|---|---|---|",
        "| **this model** | **0.100 ± 0.010** | 2.0 ± 0.3 |",
        "| Net (published) | 0.2 | 4 |",
    ]


def test_bins_table_gives_the_error_of_the_mae_only():
    metrics = {"mae": estimate(0.1, 0.01), "bias": estimate(-0.0321, 0.004), "r2": estimate(None)}
    empty = {name: estimate(None) for name in metrics}
    bins = [
        {"low": -24.0, "high": -23.0, "count": 1200, "metrics": metrics},
        {"low": -23.0, "high": -22.0, "count": 0, "metrics": empty},
    ]
    assert bins_table(bins, "true x", "dex", 1, [0.05, 0.25]).splitlines() == [
        "| true x | images | MAE [dex] | bias [dex] | exact posterior's expected error [dex] |",
        "|---|---|---|---|---|",
        "| -24.0 … -23.0 | 1,200 | 0.100 ± 0.010 | -0.032 | 0.050 |",
        "| -23.0 … -22.0 | 0 | – | – | 0.250 |",
    ]
    assert "exact" not in bins_table(bins, "snr", "", 0)
