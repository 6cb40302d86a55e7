"""Pictures and data that other packages carry, found without importing these packages, which takes up to a second."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


def packaged(package: str, file: str, distribution: str, known: str) -> Path:
    """Where a file of an installed package lies.

    Args:
        package: by the name under which it is imported.
        file: its path below the package's folder.
        distribution: the name under which the package is installed.
        known: a version of it that has the file.

    Raises:
        ModuleNotFoundError: if the package is not installed.
        FileNotFoundError: if its version does not have the file.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    path = Path(spec.origin).parent / file
    if not path.exists():
        raise FileNotFoundError(f"{distribution} {version(distribution)} does not package {path.name}; "
                                f"version {known} does")
    return path
