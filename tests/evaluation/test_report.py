import copy
import errno
import html.parser
import json
import os

import numpy as np
import pytest

from dlens_tf.errors import UserError
from dlens_tf.evaluation import report

VOID = {"meta", "link", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\n and the rest"


def estimate(value, error=None):
    return {"value": value, "standard_error": error}


def state(coverage):
    test = {"statistic": 1.0, "p_value": 0.37}
    metrics = {name: estimate(0.25, 0.004) for name in report.CALIBRATION}
    metrics["coverage_68"] = estimate(coverage, 0.02)
    return {
        "metrics": metrics,
        "pit": {"counts": [1, 2], "ks": {**test, "p_value": 1e-7}, "chi2": test},
        "sbc": {"counts": [1, 2], "chi2": test},
    }


@pytest.fixture
def result():
    metrics = {"mae": estimate(0.1284, 0.0041), "bias": estimate(-0.0001, 0.02)}
    bins = [{"low": -24.0, "high": -22.0, "count": 9, "metrics": metrics}]
    row = {"name": "this model", "source": "resnet", "metrics": metrics, "kind": "model"}
    limit = {"name": "information limit", "source": "brute force", "kind": "limit"}
    return {
        "format_version": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "run": {
            "name": "my_run",
            "description": "resnet with gaussian head",
            "seed": 0,
            "git_commit": None,
            "dlens_tf_version": "0.1.0",
        },
        "dataset": {
            "name": "deeplense",
            "config": "model_ii",
            "version": "1.0.0",
            "recipe": "model_ii",
            "classes": ["axion"],
            "seed": 3,
        },
        "split": "test",
        "num_examples": 9,
        "num_available": 10,
        "bootstrap": {"resamples": 1000, "seed": 0},
        "notes": ["a note"],
        "recalibration": {"method": "isotonic", "num_examples": 2000, "split": "calibration"},
        "joint": {
            "before": {
                "nll": estimate(-0.51, 0.02),
                "tarp": {"ks": {"p_value": 1e-9}, "upper_area": -0.031},
            },
            "after": None,
        },
        "parameters": {
            "log10_m_axion": {
                "unit": "log10(eV)",
                "difference_unit": "dex",
                "description": "axion mass in eV",
                "prior_text": "uniform",
                "metrics": metrics,
                "by_truth": bins,
                "by_snr": [],
                "limit_by_truth": [0.05],
                "calibration": {"before": state(0.61), "after": state(0.69)},
                "rows": [
                    {**row, "mae_over_limit": estimate(2.42, 0.1)},
                    {**limit, "metrics": {"mae": estimate(0.053, 0.002)}, "mae_over_limit": None},
                ],
            }
        },
    }


class Checker(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that elements nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_parses_and_is_self_contained(result):
    page = report.render_html(result, {"log10_m_axion": {"scatter": PNG}})
    checker = Checker(page)
    addresses = [v for k, v in checker.attributes if k in ("src", "href", "srcset", "action")]
    assert addresses and all(v.startswith("data:") for v in addresses)
    assert not {"script", "iframe", "object", "embed"} & set(checker.tags)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    assert "url(" not in page
    for text in ("0.128 ± 0.004", "2.42 ± 0.10", "information limit", "brute force", "a note"):
        assert text in checker.text
    # What a network may well beat within a bin must not be called a limit there.
    assert "exact posterior's expected error" in checker.text
    assert "it is no bound within a bin of the true value" in checker.text
    assert "<th>limit</th>" not in page
    assert "Axion mass in eV" in checker.text
    for text in ("0.61 ± 0.02", "0.69 ± 0.02", "as the network says", "recalibrated", "<0.0001"):
        assert text in checker.text
    assert "-0.51 ± 0.02" in checker.text and "-0.031" in checker.text
    assert "isotonic, on 2000" in checker.text


def test_hostile_names_are_escaped(result):
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}'
    hostile_result = copy.deepcopy(result)
    hostile_result["run"] |= {"name": hostile, "description": hostile, "git_commit": hostile}
    hostile_result["dataset"] |= {"config": hostile, "classes": [hostile]}
    hostile_result["notes"] = [hostile]
    entry = hostile_result["parameters"].pop("log10_m_axion")
    entry |= {"description": hostile, "unit": hostile, "difference_unit": hostile}
    for row in entry["rows"]:
        row |= {"name": hostile, "source": hostile, "kind": hostile}
    hostile_result["parameters"][hostile] = entry
    page = report.render_html(hostile_result, {hostile: {"scatter": PNG}})
    checker = Checker(page)
    assert "script" not in checker.tags
    assert [k for k, _ in checker.attributes if k.startswith("on")] == []
    assert hostile in checker.text


def test_point_estimates_have_no_calibration(result):
    result["joint"] = result["recalibration"] = None
    result["parameters"]["log10_m_axion"]["calibration"] = None
    page = Checker(report.render_html(result, {"log10_m_axion": {"scatter": PNG}})).text
    assert "as the network says" not in page and "TARP" not in page
    assert report.calibration_table(result) == ""


def test_calibration_table(result):
    lines = report.calibration_table(result).splitlines()
    assert lines[0].startswith("log10_m_axion [dex]") and "in 68 %" in lines[0]
    assert lines[1].startswith("as the network says") and "0.61 ± 0.02" in lines[1]
    assert lines[2].startswith("recalibrated") and "<0.0001" in lines[2] and "0.37" in lines[2]
    assert len(lines) == 3


def test_text_table(result):
    lines = report.text_table(result).splitlines()
    assert lines[0].split() == ["log10_m_axion", "[dex]", "MAE", "MAE", "/", "limit", "bias"]
    assert lines[1].startswith("this model") and "0.128 ± 0.004" in lines[1]
    assert len({len(line) for line in lines[:2]}) == 1
    for entry in result["parameters"].values():
        for row in entry["rows"]:
            row["mae_over_limit"] = None
    assert "MAE / limit" not in report.text_table(result)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12837, 0.0041, "0.128 ± 0.004"),
        (1.2, 0.0134, "1.200 ± 0.013"),
        (-0.0001, 0.02, "0.00 ± 0.02"),
        (123.4, 25.0, "123 ± 25"),
        (0.5, None, "0.5"),
        (1.0, 0.0, "1"),
        (None, None, "–"),
        (3e-9, 2e-9, "3e-09 ± 2e-09"),
    ],
)
def test_format_estimate(value, error, text):
    assert report.format_estimate(estimate(value, error)) == text


def test_write_report_leaves_whole_files(result, tmp_path):
    arrays = {"truth": np.arange(3.0), "parameters": np.array(["log10_m_axion"])}
    figures = {"log10_m_axion": {"scatter": PNG}}
    page = report.write_report(tmp_path, "test", result, figures, arrays)
    assert page == tmp_path / "test.html"
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert written == [
        "test.html",
        "test.json",
        "test/log10_m_axion_scatter.png",
        "test/predictions.npz",
    ]
    assert json.loads((tmp_path / "test.json").read_text()) == result
    assert (tmp_path / "test/log10_m_axion_scatter.png").read_bytes() == PNG
    with np.load(tmp_path / "test/predictions.npz", allow_pickle=False) as read:
        assert read["truth"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("full_at", ["predictions.npz", "log10_m_axion_scatter.png", "test.html"])
def test_full_disk_leaves_no_whole_report(result, tmp_path, monkeypatch, full_at):
    arrays, figures = {"truth": np.arange(3.0)}, {"log10_m_axion": {"scatter": PNG}}
    report.write_report(tmp_path, "test", result, figures, arrays)
    rename = os.replace

    def full(source, target):
        if target.name == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=rf"can't write .*{full_at}: No space left on device"):
        report.write_report(tmp_path, "test", result, figures, arrays)
    assert not (tmp_path / "test.json").exists()
    assert not [p for p in tmp_path.rglob("*") if "partial" in p.name]


def test_json_with_nan_is_refused_and_leaves_nothing(result, tmp_path):
    result["parameters"]["log10_m_axion"]["metrics"]["mae"]["value"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_report(tmp_path, "test", result, {}, {})
    assert not (tmp_path / "test.json").exists()
