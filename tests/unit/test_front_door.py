"""Public names come from `fgbg_dataset`; what cards of 0.1.0 import goes on working."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import builder
import fgbg_dataset

ROOT = Path(__file__).parents[2]


def fresh(code: str) -> str:
    """Run code in a new Python, which has imported nothing yet."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_names_a_user_needs_are_public():
    needed = {"BuildOptions", "FgbgDataset", "FgbgError", "Publication", "Recipe", "RecordReader",
              "VerifyReport", "extend_build", "finish_build", "publish", "verify"}  # fmt: skip
    assert needed <= set(fgbg_dataset.__all__)


def test_every_public_name_has_a_docstring():
    for name in fgbg_dataset.__all__:
        assert (getattr(fgbg_dataset, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("kind", ["plain", "depth", "extended"])
def test_what_the_card_of_a_published_set_imports_is_there(kind):
    card = (ROOT / "tests" / "golden" / "0.1.0" / kind / "README.md").read_text()
    lines = re.findall(r"^from builder.*$", card, re.MULTILINE)
    assert lines == ["from builder import RecordReader"]
    assert fresh(f"{lines[0]}\nprint(RecordReader.__module__)") == "builder.batches\n"
    assert builder.RecordReader is fgbg_dataset.RecordReader
    assert builder.DepthCodec is fgbg_dataset.DepthCodec


def test_builder_has_no_other_names_and_stays_light():
    with pytest.raises(AttributeError, match="no attribute 'FgbgDataset'"):
        _ = builder.FgbgDataset
    loaded = fresh("import builder, sys\nprint(*sys.modules)").split()
    assert not {"datasets", "torch", "numpy"} & set(loaded)


def test_what_the_card_of_a_published_model_imports_registers_the_model():
    found = "type(AutoConfig.for_model('densedepth')).__name__"
    code = f"import builder.densedepth\nfrom transformers import AutoConfig\nprint({found})"
    assert fresh(code) == "DenseDepthConfig\n"
    names = fresh(
        "import builder.densedepth as d\nprint(d.DenseDepthForDepthEstimation.__module__)"
    )
    assert names == "builder.depth.densedepth.modeling_densedepth\n"
