"""No code in the package could run what a file or a command line holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_structure import python_files, shown

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle"),
}
KEYWORDS = {"shell", "allow_pickle"}


def dangers(source: str) -> Iterator[str]:
    """What should not stand in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{name}" for name in names)]
            yield from (n for n in names if n.partition(".")[0] in MODULES or n in CALLS)
        elif isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in CALLS:
                yield name
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in KEYWORDS and value is not False:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell() -> None:
    files = python_files()
    found = [f"{shown(f)}: {d}" for f in files for d in dangers(f.read_text(encoding="utf-8"))]
    assert len(files) > 50 and not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle as p", "pickle"),
        ("def f():\n    from joblib.x import load", "joblib.x"),
        ("from torch import load", "torch.load"),
        ("from yaml import unsafe_load as load", "yaml.unsafe_load"),
        ("torch.load(path, weights_only=True)", "torch.load"),
        ("x = eval(text)", "eval"),
        ("subprocess.run(text, shell=True)", "shell=True"),
        ("read(path, allow_pickle=flag)", "allow_pickle=flag"),
        ("network.eval(); subprocess.run([a], shell=False); yaml.safe_load(text)", ""),
    ],
)
def test_what_is_looked_for_is_found(source: str, found: str) -> None:
    assert next(dangers(source), "") == found
