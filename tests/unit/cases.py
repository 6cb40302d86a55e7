"""Every module of the catalog, and every variant that it names, as parameters of a test."""

import pytest

import attn_lib

CASES = [(id, variant) for id in attn_lib.list_modules() for variant in (None, *attn_lib.entry(id).variants)]
each_case = pytest.mark.parametrize(("id", "variant"), CASES, ids=[f"{i}-{v}" if v else i for i, v in CASES])
each_module = pytest.mark.parametrize("id", attn_lib.list_modules())
