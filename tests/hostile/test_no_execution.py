"""Nothing in the product can run code from data: checked on its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "fgbg_dataset.py", *sorted((ROOT / "builder").rglob("*.py"))]

MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "code",
    "runpy",
}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load",
         "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "extractall"}  # fmt: skip
# `torch.load` only so, and `numpy.load` never with allow_pickle.
NEEDED = {"torch.load": ("weights_only", True)}
FORBIDDEN = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def findings(source: str) -> Iterator[str]:
    """Everything in some source text that could run code from data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            yield from _in_call(node)


def _in_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    method = name.split(".")[-1] if isinstance(node.func, ast.Attribute) else ""
    if name in CALLS or method in CALLS - {"compile", "eval", "exec"}:
        yield name  # `model.eval()` and `re.compile()` are other things
    if name in NEEDED:
        keyword, value = NEEDED[name]
        if given.get(keyword) is not value:
            yield f"{name} without {keyword}={value}"
    for keyword in node.keywords:
        if keyword.arg in FORBIDDEN and given.get(keyword.arg, ...) is not (
            not FORBIDDEN[keyword.arg]
        ):
            yield f"{name}({keyword.arg}=...)"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_can_run_code_from_data(path: Path) -> None:
    assert list(findings(path.read_text(encoding="utf-8"))) == []


def test_all_files_of_the_product_are_looked_at() -> None:
    assert {"cli.py", "estimator.py", "convert_densedepth.py"} <= {path.name for path in FILES}
    assert len(FILES) > 20


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import os\nos.system('x')", "eval('x')",
        "exec(x)", "compile(x, '', 'exec')", "__import__(name)", "torch.load(p)",
        "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "yaml.load(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)", "np.load(p, allow_pickle=True)",
        "from_pretrained(x, trust_remote_code=flag)", "archive.extractall(p)", "import joblib.x",
    ],
)  # fmt: skip
def test_the_check_would_notice(source: str) -> None:
    assert list(findings(source))


def test_the_check_passes_what_is_harmless() -> None:
    source = """
import re, torch
re.compile("x"); network.eval(); json.load(f); yaml.safe_load(f)
torch.load(p, weights_only=True); from_pretrained(p, trust_remote_code=False)
"""
    assert list(findings(source)) == []
