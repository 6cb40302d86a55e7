"""Finding places by name."""

import pytest

from attn_lib.plug.sites import find


@pytest.mark.parametrize(("pattern", "expected"), [
    ("layer1.*", ["layer1.0", "layer1.1"]),
    ("layer[12].*.bn3", ["layer1.0.bn3", "layer1.1.bn3", "layer2.0.bn3", "layer2.1.bn3"]),
    ("**.bn3", ["layer1.0.bn3", "layer1.1.bn3", "layer2.0.bn3", "layer2.1.bn3"]),
    ("*.bn3", None),
    ("layer?.0", ["layer1.0", "layer2.0"]),
    ("layer1.1.**.conv1", ["layer1.1.conv1"]),
    ("head", ["head"]),
    ("layer1.0.conv[!2]", ["layer1.0.conv1", "layer1.0.conv3"]),
])
def test_a_star_stays_within_one_part(resnet, pattern, expected):
    if expected is None:
        with pytest.raises(ValueError, match="matches no sub-module"):
            find(resnet, pattern)
    else:
        assert list(find(resnet, pattern)) == expected


def test_no_match_names_what_is_near(resnet):
    with pytest.raises(ValueError, match=r"pattern='layer1.0.bn4' matches no sub-module.*layer1\.0\.bn3"):
        find(resnet, "layer1.0.bn4")
