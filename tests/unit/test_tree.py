"""Nothing in the tree runs what it reads: no pickle, no eval, no shell, no templates."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("demo", "bench", "cluster", "ingress", "actors", "model", "router", "kernels")
MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jinja2", "xmlrpc", "telnetlib"}
CALLS = {"eval", "exec", "compile", "__import__", "input"}
METHODS = {
    *(f"torch.{name}" for name in ("load", "save", "hub.load", "jit.load")),
    *(f"yaml.{name}" for name in ("load", "unsafe_load", "full_load", "load_all", "Loader", "UnsafeLoader")),
    *(f"os.{name}" for name in ("system", "popen", "execv", "execvp")),
    *("np.load", "numpy.load", "np.fromregex", "tempfile.mktemp"),
    *("ray.cloudpickle", "subprocess.getoutput", "ssl._create_unverified_context"),
}
ARGUMENTS = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}


def faults_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(one.name for one in node.names)}
            yield from (name for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in METHODS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            for argument in node.keywords:
                value = argument.value.value if isinstance(argument.value, ast.Constant) else None
                if (argument.arg, value) in ARGUMENTS:
                    yield f"{argument.arg}={value}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_that_is_read_is_run(folder: str):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): list(faults_of(file.read_text())) for file in files}
    assert {file: faults for file, faults in found.items() if faults} == {}


def test_79_only_one_place_opens_a_store_of_torch():
    """There it is bound to one address (test_nccl.py). Benches between two GPUs are no cluster."""
    words = ("TCPStore", "init_process_group", "init_method")
    served = [file for folder in FOLDERS if folder != "bench" for file in (ROOT / folder).rglob("*.py")]
    opening = {
        str(file.relative_to(ROOT)) for file in served if any(word in file.read_text() for word in words)
    }
    assert opening == {"router/nccl.py"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from ray import cloudpickle",
        "import xmlrpc.client",
        "eval('1')",
        "exec(x)",
        "torch.load(f)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "subprocess.run('ls', shell=True)",
        "torch.hub.load('x')",
        "f(trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str):
    assert list(faults_of(source))
