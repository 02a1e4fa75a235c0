"""The decoder for automatic segmentation, against torch-em's, which micro-SAM uses."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from cellseg_microsam import unetr_cpu, upsampling  # noqa: E402
from cellseg_microsam.normalisation import (  # noqa: E402
    batch_norm_rectified,
    instance_norm_middle,
    instance_norm_rectified,
    norm_before_enlarging,
)
from cellseg_microsam.unetr import UnetrDecoder  # noqa: E402
from cellseg_microsam.upsampling import convolve_enlarged  # noqa: E402

WIDTHS = (32, 16, 8, 4)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def theirs(transposed: bool) -> Any:
    """micro-SAM's decoder: ``decode`` of a UNETR as ``get_unetr`` builds it."""
    from segment_anything.modeling import ImageEncoderViT
    from torch_em.model.unetr import UNETR

    encoder = ImageEncoderViT(img_size=64, embed_dim=8, depth=1, num_heads=2, out_chans=32)
    return UNETR(
        encoder=encoder,
        out_channels=3,
        use_sam_stats=True,
        final_activation="Sigmoid",
        use_skip_connection=False,
        use_conv_transpose=transposed,
        initial_features=WIDTHS[-1],
    )


def decoder_state(unetr: Any) -> dict[str, Any]:
    return {k: v for k, v in unetr.state_dict().items() if not k.startswith("encoder.")}


def assert_near(ours: Any, theirs: Any, what: str | None = None) -> None:
    """Up to rounding of the largest number."""
    digits = 1e-10 if ours.dtype == torch.float64 else 1e-5
    scale = max(float(theirs.abs().max()), 0.1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=digits * scale, msg=what)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("kind", "transposed"), [("cpu", False), ("plain", False), ("plain", True)], ids=str
)
def test_results_gradients_and_statistics_are_those_of_torch_em(
    monkeypatch: pytest.MonkeyPatch, kind: str, transposed: bool, training: bool
) -> None:
    if kind == "plain":
        monkeypatch.setattr("cellseg_microsam.unetr.can_decode", lambda *_: False)
    monkeypatch.setattr(upsampling, "_PAYS", {torch.float64: 8})  # also the quick way
    unetr = theirs(transposed).double()
    for name, buffer in unetr.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    ours = UnetrDecoder(32, WIDTHS, transposed=transposed).double()
    ours.load_state_dict(decoder_state(unetr))
    unetr.train(training)
    ours.train(training)
    results = []
    weights = torch.randn(2, 3, 64, 64).double()
    given = torch.randn(2, 32, 4, 4).double()
    for run in (
        lambda x: unetr.decode((x, None, None), (64, 64), (64, 64)),
        lambda x: torch.sigmoid(ours(x)),
    ):
        x = given.clone().requires_grad_()
        out = run(x)
        (out * weights).sum().backward()
        results.append((out.detach(), x.grad))
    (out, grad), (our_out, our_grad) = results
    assert our_out.shape == (2, 3, 64, 64)
    assert_near(our_out, out)
    assert_near(our_grad, grad)
    state = decoder_state(unetr)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, state[name], msg=name)
    parameters = dict(unetr.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_near(parameter.grad, parameters[name].grad, name)


def test_one_path_serves_the_cpu_and_the_other_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = unetr_cpu.decode
    monkeypatch.setattr(
        "cellseg_microsam.unetr.decode", lambda *args: calls.append(1) or real(*args)
    )
    decoder, x = UnetrDecoder(32, WIDTHS).eval(), torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        decoder(x)
        assert len(calls) == 1
        traced = torch.jit.trace(decoder, x, check_trace=False)
        assert len(calls) == 1, "what is traced must run anywhere"
        torch.testing.assert_close(traced(x), decoder(x), rtol=1e-4, atol=1e-5)


def test_half_precision_is_as_near_as_theirs() -> None:
    unetr = theirs(False).train()
    ours = UnetrDecoder(32, WIDTHS).train()
    ours.load_state_dict(decoder_state(unetr))
    x = torch.randn(1, 32, 8, 8)
    exact = torch.sigmoid(ours(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = unetr.decode((x, None, None), (128, 128), (128, 128))
        ours_half = torch.sigmoid(ours(x))
    assert ours_half.dtype == torch.bfloat16
    assert (ours_half - exact).abs().mean() < 1.5 * (half - exact).abs().mean()
    (ours_half.float().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def same(ours: Any, reference: Any, *tensors: Any) -> None:
    """The same result and gradients, the images of ours with channels last."""
    weights, found = None, []
    for function, last in ((ours, True), (reference, False)):
        given = [tensor.clone().requires_grad_() for tensor in tensors]
        form = torch.channels_last
        out = function(
            *(t.contiguous(memory_format=form) if last and t.ndim == 4 else t for t in given)
        )
        weights = torch.randn(out.shape, dtype=out.dtype) if weights is None else weights
        (out * weights).sum().backward()
        found.append((out, [tensor.grad for tensor in given]))
    (out, grads), (expected, expected_grads) = found
    assert_near(out, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_near(grad, expected_grad)


def enlarged(x: Any) -> Any:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(3, 3), (4, 7), (9, 8)], ids=str)
def test_convolving_what_is_enlarged_without_enlarging(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(upsampling, "_PAYS", {torch.float64: 3})
    same(
        convolve_enlarged,
        lambda x, weight, bias: F.conv2d(enlarged(x), weight, bias, padding=1),
        torch.randn(2, 5, *size, dtype=torch.float64),
        torch.randn(4, 5, 3, 3, dtype=torch.float64),
        torch.randn(4, dtype=torch.float64),
    )


def test_norms_are_torchs() -> None:
    x = torch.randn(2, 6, 7, 9) + 0.3
    same(instance_norm_rectified, lambda x: F.instance_norm(x.relu()), x)
    same(lambda x: instance_norm_middle(x, 4), lambda x: F.instance_norm(x[:, 1:5]), x)
    same(lambda x: enlarged(norm_before_enlarging(x)), lambda x: F.instance_norm(enlarged(x)), x)
    same(
        lambda x, w, b: batch_norm_rectified(x, w, b, 1e-5)[0],
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True).relu(),
        x,
        torch.randn(6),
        torch.randn(6),
    )


def test_norms_of_large_images_are_accurate() -> None:
    x = (torch.randn(1, 4, 700, 700) + 5).contiguous(memory_format=torch.channels_last)
    expected = F.instance_norm(x.double())
    error = (instance_norm_middle(x, 4).double() - expected).abs().max()
    assert error < 1e-5
    torchs = (F.batch_norm(x, None, None, training=True).double() - expected).abs().max()
    assert torchs > 10 * error, "torch is accurate by now: its own norms would do"
