"""One module of each family in its network, put to every use: what works is what the record says."""

import pytest

from book.tools.networks import FILE, parted
from book.tools.record import load
from tests.networks import matrix
from tests.networks.networks import FAMILIES

RECORD = {(row["network"], row["module"]): row for row in load(FILE)["rows"]}


@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_is_put_to_every_use(name):
    row, recorded = matrix.run(FAMILIES[name], name), RECORD[FAMILIES[name], name]
    assert "refused" not in row
    other = {use: cell for use, cell in row["cells"].items()
             if parted(cell)[0] != parted(recorded["cells"].get(use, "not run"))[0]}
    assert not other, (f"not as book/networks.json says; where it became better, run `make test-networks "
                       f"MODULES={name}` and commit the file")
