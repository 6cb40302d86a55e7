"""The contract, for every module of the catalog and every variant it names.

A module added to the catalog is tested here without writing a line. There is no list of exceptions: what a paper
rules out stands, with its reason, in the module's own entry (`forbids`).
"""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import attn_lib
from attn_lib import measure
from attn_lib.measure.roofline import true_float32
from tests.unit.cases import CASES, each_case, each_module

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
on_each_device = pytest.mark.parametrize("device", DEVICES)


def make(id, variant=None, rule=None, *, device="cpu", dtype=torch.float32, **options):
    """A module whose parameters are all drawn at random, and its inputs; skips what the paper forbids."""
    reason = attn_lib.entry(id).forbids.get(rule)
    if reason:
        pytest.skip(f"{id} forbids {rule}: {reason}")
    module, inputs = attn_lib.example(id, variant, generic=True, **options)
    return module.to(device, dtype), tuple(x.to(device, dtype) for x in inputs)


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def assert_same(actual, expected, **tolerance):
    for a, e in zip(outputs(actual), outputs(expected), strict=True):
        torch.testing.assert_close(a, e, **tolerance)


@on_each_device
@each_case
def test_output_has_the_shape_the_entry_states(id, variant, device):
    e = attn_lib.entry(id)
    module, inputs = make(id, variant, device=device)
    ys = outputs(module(*inputs))
    into = e.layout_of(variant).sizes([x.shape for x in inputs])
    out = e.output_of(variant).sizes([y.shape for y in ys])  # raises where the axes are not those that are stated
    assert {axis: into[axis] for axis in out if axis in into} == {axis: out[axis] for axis in out if axis in into}
    assert all(torch.isfinite(y).all() and y.device == inputs[0].device for y in ys)


@each_case
@pytest.mark.parametrize("size", [(7, 9), (13, 5), (5, 32), (15, 15)], ids=str)
def test_odd_and_non_square_sizes(id, variant, size):
    free = attn_lib.entry(id).layout_of(variant).free
    module, inputs = make(id, variant, "odd_sizes", size=(*size, *size)[:len(free)])
    assert all(torch.isfinite(y).all() for y in outputs(module(*inputs)))


@each_case
def test_batch_of_one_in_training_mode(id, variant):
    module, inputs = make(id, variant, "batch_one", batch=1)
    leaves = [x.requires_grad_() for x in inputs]  # a module without parameters has a backward pass too
    outputs(module.train()(*leaves))[0].sum().backward()


@each_case
def test_items_of_a_batch_do_not_see_each_other(id, variant):
    module, inputs = make(id, variant, batch=3, dtype=torch.float64)
    together = outputs(module.eval()(*inputs))
    for b in range(3):
        alone = outputs(module(*(x[b:b + 1] for x in inputs)))
        assert_same(alone, tuple(y[b:b + 1] for y in together))


@on_each_device
@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_and_autocast(id, variant, dtype, device):
    module, inputs = make(id, variant, "half", device=device, batch=8)  # batch norm of a few vectors amplifies rounding
    leaves = [x.requires_grad_() for x in inputs]
    exact = outputs(module(*leaves))
    with torch.autocast(device, dtype):
        cast = outputs(module(*leaves))
    half_module, half_inputs = make(id, variant, device=device, dtype=dtype, batch=8)
    half = outputs(half_module(*half_inputs))
    with torch.no_grad(), torch.autocast(device, dtype):  # behind a layer that autocast has run in half precision
        assert all(y.dtype == dtype for y in outputs(module(*half_inputs)))
    for y, a, h in zip(exact, cast, half, strict=True):
        assert h.dtype == dtype
        scale = y.abs().max().item()
        assert (a.float() - y).abs().max() < 0.05 * scale, "autocast strays from float32"
        assert (h.float() - y).abs().max() < 0.10 * scale, "half precision strays from float32"
    sum(a.float().square().mean() for a in cast).backward()  # a sum would overflow float16
    assert all(torch.isfinite(p.grad).all() for p in (*module.parameters(), *leaves))


class AutocastAsOnAGPU(TorchFunctionMode):
    """On a CPU: autocast runs in float32 what it runs in float32 on a GPU, where its list is longer."""

    WIDE = frozenset(
        "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ "
        "__rtruediv__ softplus layer_norm group_norm norm normalize cosine_similarity cdist renorm prod sum cumprod "
        "cumsum softmax softmin log_softmax interpolate".split())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.WIDE and torch.is_autocast_enabled("cpu"):
            args = [x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
        return func(*args, **(kwargs or {}))


@each_case
def test_autocast_on_a_gpu_leaves_the_type_of_the_output(id, variant):
    """Behind a layer that autocast has run in half precision; found on a GPU, and held without one."""
    module, inputs = make(id, variant, "half", batch=8)
    inputs = [x.bfloat16() for x in inputs]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), AutocastAsOnAGPU():
        assert all(y.dtype == torch.bfloat16 for y in outputs(module(*inputs)))


def rms(x):
    return x.double().square().mean().sqrt().item()


@on_each_device
@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("generic", [False, True], ids=["fresh", "generic"])
def test_large_inputs_in_half_precision(id, variant, generic, dtype, device, std=300):
    """Features as large as in trained networks: nothing within exceeds float16, in a trace or outside."""
    module, inputs = attn_lib.example(id, variant, generic=generic, batch=8)
    inputs = tuple(std * x for x in inputs)
    for x in inputs:
        x[::2] = 1.65 * x[::2].abs()  # half of the items as behind a ReLU: no sum over pixels cancels out
    half, inputs = module.to(device, dtype), tuple(x.to(device, dtype) for x in inputs)

    def exact(noise=0.0):
        """The float64 output of the same numbers, or of numbers moved by a rounding each."""
        draws = torch.Generator(device).manual_seed(0)
        twin = copy.deepcopy(half).double()
        moved = [*twin.parameters(), *(xs := [x.double() for x in inputs])]
        for t in moved:
            t.data *= 1 + noise * torch.randn(t.shape, generator=draws, dtype=t.dtype, device=device)
        return outputs(twin(*xs))[0].detach()

    for _ in range(30):
        if (y := exact()).abs().max() <= 30_000:
            break
        for p in half.parameters():  # what cannot be written in float16 at all proves nothing
            p.data /= 2
    else:
        pytest.fail("the output exceeds float16, however small the weights")
    # A softmax of such logits is a hard choice: what rounding the numbers themselves does to y is no fault.
    allowed = 0.03 * rms(y) + 3 * rms(exact(torch.finfo(dtype).eps) - y)
    plain, traced, cast = copy.deepcopy(half), copy.deepcopy(half), copy.deepcopy(half).float()
    with attn_lib.trace() as t:
        leaves = [x.clone().requires_grad_() for x in inputs]
        results = [(traced, outputs(traced(*leaves)))]
    for name in t.names():
        assert not t[name].isnan().any() and not t[name].isposinf().any(), f"{name} exceeds {dtype}"
    results.append((plain, outputs(plain(*leaves))))
    with torch.autocast(device, dtype):
        results.append((cast, outputs(cast(*(x.float() for x in leaves)))))
    for run, hs in results:
        assert all(torch.isfinite(h).all() for h in hs)
        assert rms(hs[0].double() - y) <= allowed, "strays from float64"
        for p in leaves:
            p.grad = None
        loss = sum(h.float().square().mean() for h in hs)
        (loss / y.abs().max() ** 2).backward()  # scaled, as in mixed-precision training
        assert all(torch.isfinite(p.grad).all() for p in (*run.parameters(), *leaves))


@on_each_device
@each_module
def test_inputs_as_large_as_behind_a_few_layers_in_half_precision(id, device):
    """Between the two: what an overflow far up hides, such as a logit of thousands, is to be right here."""
    test_large_inputs_in_half_precision(id, None, True, torch.float16, device, std=30)


@each_case
def test_memory_layout_of_the_input_does_not_matter(id, variant):
    module, inputs = make(id, variant, dtype=torch.float64)
    expected = module.eval()(*inputs)
    strided = tuple(x.repeat_interleave(2, -1)[..., ::2] for x in inputs)
    assert not any(x.is_contiguous() for x in strided)
    assert_same(module(*strided), expected)
    if all(x.ndim == 4 for x in inputs):
        last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        assert_same(last(*(x.contiguous(memory_format=torch.channels_last) for x in inputs)), expected)


@each_case
def test_copies_and_state_dict(id, variant):
    module, inputs = make(id, variant)
    expected = module.eval()(*inputs)
    assert_same(copy.deepcopy(module)(*inputs), expected, rtol=0, atol=0)
    fresh = attn_lib.example(id, variant, seed=1)[0].eval()
    fresh.load_state_dict(module.state_dict())
    assert_same(fresh(*inputs), expected, rtol=0, atol=0)


@on_each_device
@each_case
def test_compiles_whole(id, variant, device):
    module, inputs = make(id, variant, "compile", device=device)
    module.eval()
    # Inductor writes and compiles C++; once a module is enough, the capture is what a variant can break.
    backend = "inductor" if variant is None else "aot_eager"
    torch.compiler.reset()
    with true_float32():
        expected = module(*inputs)
        assert_same(torch.compile(module, fullgraph=True, backend=backend)(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_gpu_gives_what_the_cpu_gives(id, variant, dtype):
    """Outputs, and the gradients of inputs and parameters.

    Torch's `hardswish` divides by 6 in float32 there, also in float64.
    """
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-3}[dtype]
    found = []
    for device in ("cpu", "cuda"):
        module, inputs = make(id, variant, device=device, dtype=dtype)
        leaves = [*(x.requires_grad_() for x in inputs), *module.parameters()]
        with true_float32():
            ys = outputs(module.eval()(*inputs))
            grads = torch.autograd.grad(sum(y.square().mean() for y in ys), leaves)
        found.append([t.cpu() for t in (*ys, *grads)])
    for here, there in zip(*found, strict=True):
        assert (there - here).abs().max() <= tolerance * max(1, here.abs().max())


@pytest.mark.parametrize(("id", "variant"), [case for case in CASES if case[1]])
def test_exports(id, variant):
    module, inputs = make(id, variant, "export")
    expected = module.eval()(*inputs)
    assert_same(torch.export.export(module, inputs).module()(*inputs), expected)


@on_each_device
@each_case
def test_every_parameter_and_input_receives_a_gradient(id, variant, device):
    module, inputs = make(id, variant, device=device, dtype=torch.float64)
    reached = dict.fromkeys([name for name, _ in module.named_parameters()], False)
    assert all(p.ndim for p in module.parameters()), "a parameter without axes cannot be sharded: make it a vector of 1"
    draws = torch.Generator().manual_seed(0)
    for _ in range(8):  # several draws: one ReLU may be closed, not every time
        for p in module.parameters():
            p.data.copy_(torch.randn(p.shape, generator=draws, dtype=p.dtype) * 0.5)
            p.grad = None
        leaves = [x.clone().requires_grad_() for x in inputs]
        sum(y.square().sum() for y in outputs(module(*leaves))).backward()
        for name, p in module.named_parameters():
            assert p.grad is not None, f"{name} takes no part in the output"
            reached[name] |= bool(p.grad.abs().sum() > 0)
        assert all(x.grad is not None for x in leaves)
        if all(reached.values()):
            break
    assert all(reached.values()), [name for name, ok in reached.items() if not ok]


@each_case
def test_a_short_input_leaves_no_parameter_without_a_gradient(id, variant):
    """Nor the shortest that the module takes: DDP would wait for the gradient, or refuse to go on."""
    free = len(attn_lib.entry(id).layout_of(variant).free)
    for n in range(1, 13):
        try:
            module, inputs = make(id, variant, "batch_one", size=(n,) * free)
            ys = outputs(module(*(x.requires_grad_() for x in inputs)))
        except ValueError:  # shorter than the module takes
            continue
        sum(y.square().sum() for y in ys).backward()
        missing = [name for name, p in module.named_parameters() if p.grad is None]
        assert not missing, f"of {n} pixels or steps: {missing}"
        return
    pytest.fail("no input of up to 12 is taken")


@pytest.mark.parametrize(("id", "variant"), [
    (i, v) for i, v in CASES if any(p.shape == (1,) for p in attn_lib.example(i, v)[0].parameters())])
def test_files_with_numbers_for_vectors_of_one_load(id, variant):
    """As γ of criss-cross attention was, and is elsewhere."""
    module, inputs = make(id, variant)
    vectors = {name for name, p in module.named_parameters() if p.shape == (1,)}
    old = {name: t.squeeze() if name in vectors else t for name, t in module.state_dict().items()}
    fresh = nn.Sequential(attn_lib.example(id, variant, seed=1)[0])
    fresh.load_state_dict({f"0.{name}": t for name, t in old.items()})
    assert_same(fresh[0].eval()(*inputs), module.eval()(*inputs), rtol=0, atol=0)
    assert all(old[name].ndim == 0 for name in vectors), "read, not changed"


@each_case
def test_gradients_are_those_of_finite_differences(id, variant):
    module, inputs = make(id, variant, batch=1, dtype=torch.float64)
    module.eval()
    parameters = dict(module.named_parameters())
    names, values = tuple(parameters), tuple(parameters.values())
    leaves = [x.clone().requires_grad_() for x in inputs]

    def f(*args):
        drawn = dict(zip(names, args[:len(names)], strict=True))
        return torch.func.functional_call(module, drawn, args[len(names):])

    assert torch.autograd.gradcheck(f, (*values, *leaves), fast_mode=True)


def samples_twice():
    """Whether this torch has second derivatives of `F.grid_sample`: the oldest that is supported has none."""
    x, grid = torch.rand(1, 1, 2, 2, requires_grad=True), torch.zeros(1, 1, 1, 2, requires_grad=True)
    y = torch.nn.functional.grid_sample(x, grid, align_corners=False).square()
    first, = torch.autograd.grad(y.sum(), x, create_graph=True)
    try:
        first.sum().backward()
    except RuntimeError:
        return False
    return True


@each_module
def test_second_derivatives_are_those_of_finite_differences(id):
    """As a gradient penalty takes them, through fused attention and through operators of our own."""
    module, inputs = make(id, batch=1, dtype=torch.float64)
    module.eval()
    leaves = [x.requires_grad_() for x in inputs]
    if "bilinear_sample" in inspect.getsource(inspect.getmodule(type(module))) and not samples_twice():
        pytest.skip(f"torch {torch.__version__} has no second derivative of F.grid_sample")
    assert torch.autograd.gradgradcheck(lambda *xs: outputs(module(*xs)), leaves, fast_mode=True)


@each_module
def test_vmap_is_the_loop_over_calls(id):
    module, inputs = make(id, dtype=torch.float64)
    module.eval()
    runs = [tuple(x * scale for x in inputs) for scale in (1, 0.5)]
    found = torch.vmap(module)(*(torch.stack(xs) for xs in zip(*runs, strict=True)))
    for i, xs in enumerate(runs):
        assert_same(tuple(y[i] for y in outputs(found)), outputs(module(*xs)))


@each_case
def test_input_is_left_alone(id, variant):
    module, inputs = make(id, variant)
    before = [x.clone() for x in inputs]
    versions = [x._version for x in inputs]
    module(*inputs)
    assert [x._version for x in inputs] == versions
    assert all(torch.equal(x, b) for x, b in zip(inputs, before, strict=True))


@each_case
def test_same_input_same_output(id, variant):
    module, inputs = make(id, variant)
    module.eval()
    assert_same(module(*inputs), module(*inputs), rtol=0, atol=0)


@each_module
def test_identity_at_initialisation_is_as_stated(id):
    module, inputs = attn_lib.example(id)
    y = outputs(module.eval()(*inputs))[0]
    assert torch.equal(y, inputs[0]) == attn_lib.entry(id).identity_at_init


@each_case
def test_taps_name_the_output_and_every_axis(id, variant):
    module, inputs = make(id, variant)
    expected = module.eval()(*inputs)
    with attn_lib.trace() as t:
        y = module(*inputs)
    assert_same(y, expected, rtol=1e-4, atol=1e-5)
    assert len(t) >= 2 and t[t.names()[-1]] is outputs(y)[0], "the last tap is the output"
    assert all(t.dims(name) for name in t.names())
    assert t.sizes()["B"] == inputs[0].shape[0]


@each_module
def test_symmetries_are_as_stated(id):
    """What the entry states holds for arbitrary weights; what it leaves out is really broken."""
    module, inputs = make(id, dtype=torch.float64)
    found, stated = measure.symmetries(module.eval(), inputs), attn_lib.entry(id).commutes_with
    broken = {name: found[name] for name in stated if found[name] >= 1e-10}
    kept = {name for name, deviation in found.items() if deviation < 1e-10}
    assert not broken, f"commutes_with states what deviates by more than 1e-10: {broken}"
    assert not kept - stated, f"commutes_with leaves out what holds: {sorted(kept - stated)}"


# ---- bad arguments and bad inputs ------------------------------------------------------------------------------------


def integer_options(id):
    """(option, bad value) pairs from the signature: every integer option refuses what is no count."""
    options = attn_lib.entry(id).options()
    for name, parameter in inspect.signature(attn_lib.entry(id).cls).parameters.items():
        default = options.get(name, parameter.default)
        if isinstance(default, int) and not isinstance(default, bool):
            yield from ((name, bad) for bad in (-1, 2.5, "3", True))
            if name == "channels":
                yield name, 0


BAD_OPTIONS = [(id, name, bad) for id in attn_lib.list_modules() for name, bad in integer_options(id)]


@pytest.mark.parametrize(("id", "name", "bad"), BAD_OPTIONS)
def test_bad_argument_is_named(id, name, bad):
    with pytest.raises(ValueError, match=rf"{name}.*(must|is)"):
        attn_lib.create(id, **{**attn_lib.entry(id).options(), name: bad})


@each_module
def test_bad_input_is_named(id):
    module, inputs = make(id)
    x, *others = inputs
    bad = {
        "rank": x[0],
        "one axis more": x[None],
        "integers": x.long(),
        "empty batch": x[:0],
        "empty last axis": x[..., :0],
        "not a tensor": x.tolist(),
        "wrong channels": torch.cat([x, x], attn_lib.entry(id).layout.dim("C")),
    }
    for what, value in bad.items():
        with pytest.raises(ValueError, match=r"must"):
            module(value, *others)
            pytest.fail(f"{id} accepts an input with {what}")


# ---- documentation ---------------------------------------------------------------------------------------------------


@each_module
def test_docstring_says_all_it_must(id):
    e = attn_lib.entry(id)
    doc = inspect.getdoc(e.cls)
    for part in ("=", "Args:", "Shape:", "Raises:", "Paper:", "ValueError"):
        assert part in doc, f"the docstring of {e.cls.__name__} lacks {part!r}"
    for paper in e.papers:
        assert str(paper.year) in doc and (paper.arxiv or "") in doc
    signature = list(inspect.signature(e.cls).parameters.values())
    assert signature[0].name == "channels"
    assert all(p.kind is p.KEYWORD_ONLY for p in signature[1:] if p.name != "out_channels"), "options are keyword-only"
    for p in signature:
        assert f"{p.name}" in doc.split("Args:")[1], f"argument {p.name} is not documented"
