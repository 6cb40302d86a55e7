"""What all tests share: the choice of one module or chapter (`--id`), and of every chapter (`--every-chapter`)."""

import pytest

from book.tools import costs


def pytest_addoption(parser):
    parser.addoption("--id", help="only the tests of this module and its chapter, such as --id se")
    parser.addoption(
        "--every-chapter", action="store_true",
        help="run for every chapter what is otherwise run for one chapter of each kind (a foundation, a module)",
    )
    parser.addoption(
        "--every-module", action="store_true",
        help="run for every module what is otherwise run for those in which it can go wrong (ONNX by torch.export)",
    )


def pytest_configure(config):
    id = config.getoption("--id")
    if id and (problem := costs.unknown(id)):
        raise pytest.UsageError(f"--id: {problem}")


def pytest_collection_modifyitems(config, items):
    id = config.getoption("--id")
    if id:
        chosen = [item for item in items if costs.subject(item) == id]
        config.hook.pytest_deselected(items=[item for item in items if costs.subject(item) != id])
        items[:] = chosen
