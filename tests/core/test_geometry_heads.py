import pytest
import torch

from pixio_robot import Encoder, Tokens, create_encoder
from pixio_robot.errors import SettingError, UnknownNameError
from pixio_robot.geometry.heads import DPT_PRESETS, DPTHead, LinearHead
from pixio_robot.geometry.taps import taps_of


def tokens(taps: int, *, classes: int = 3, grid: tuple[int, int] = (4, 7), width: int = 8) -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    n = grid[0] * grid[1]
    return [
        Tokens(torch.randn(2, classes, width, generator=generator), torch.randn(2, n, width, generator=generator), grid)
        for _ in range(taps)
    ]


@pytest.mark.parametrize(("depth", "expected"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (48, [11, 23, 35, 47])])
def test_taps_are_those_of_the_paper(depth: int, expected: list[int]) -> None:
    encoder = create_encoder("pixio_vitt16", depth=depth, width=8, heads=1, image_size=32)
    assert taps_of(encoder, 4) == expected
    assert taps_of(encoder, 1) == [depth - 1]


def test_more_taps_than_blocks_are_refused(encoder: Encoder) -> None:
    with pytest.raises(SettingError, match="from 1 to 4"):
        taps_of(encoder, 5)


@pytest.mark.parametrize("classes", [0, 1, 8])
@pytest.mark.parametrize("readout", ["mean", "none"])
@pytest.mark.parametrize("grid", [(4, 7), (5, 5), (1, 2)])
def test_heads_answer_any_encoder_and_any_grid_at_any_size(classes: int, readout: str, grid: tuple[int, int]) -> None:
    for taps, head in (
        (1, LinearHead(8, out_channels=2, readout=readout)),  # pyright: ignore[reportArgumentType]
        (4, DPTHead(8, out_channels=2, readout=readout)),  # pyright: ignore[reportArgumentType]
        (2, DPTHead(8, taps=2, out_channels=2, readout=readout)),  # pyright: ignore[reportArgumentType]
    ):
        out = head(tokens(taps, classes=classes, grid=grid), (33, 50))
        assert out.shape == (2, 2, 33, 50)
        assert out.dtype == torch.float32
        assert out.std() > 0


def test_class_tokens_count_only_where_they_are_read() -> None:
    seen = tokens(1)
    other = [Tokens(seen[0].classes + 1, seen[0].patches, seen[0].grid)]
    for readout, equal in (("mean", False), ("none", True)):
        head = LinearHead(8, readout=readout).eval()  # pyright: ignore[reportArgumentType]
        assert torch.equal(head(seen, (8, 14)), head(other, (8, 14))) == equal


def test_the_output_layer_computes_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = DPTHead(8)
    kept: list[torch.Tensor] = []
    head.smooth.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = head(tokens(4), (64, 112))  # the size at which the output layer works: nothing to interpolate
        assert kept[0].dtype == torch.bfloat16
    exact = torch.nn.functional.conv2d(kept[0].float().relu(), head.out.weight, head.out.bias)
    exact = torch.nn.functional.interpolate(exact, (64, 112), mode="bilinear", align_corners=True)
    torch.testing.assert_close(out, exact)
    assert len(out.unique()) > 1000  # bfloat16 has 256 values to a factor of 2


def test_a_linear_head_is_linear_in_every_patch() -> None:
    head = LinearHead(8, readout="none").eval()
    seen = tokens(1)
    expected = seen[0].patches @ head.out.weight[0, :, 0, 0] / (1 + head.norm.eps) ** 0.5
    torch.testing.assert_close(head(seen, (4, 7)).flatten(1), expected)


def test_extra_channels_are_read_and_missing_ones_refused() -> None:
    head = DPTHead(8, extra=6)
    extra = torch.randn(2, 6, 4, 7)
    assert not torch.equal(head(tokens(4), (8, 8), extra), head(tokens(4), (8, 8), extra + 1))
    with pytest.raises(SettingError, match="extra channels"):
        head(tokens(4), (8, 8))
    with pytest.raises(SettingError, match="extra channels"):
        head(tokens(4), (8, 8), extra[:, :, :3])


def test_every_parameter_learns_something() -> None:
    for taps, head in ((4, DPTHead(8)), (1, LinearHead(8))):
        head(tokens(taps), (8, 8)).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 3.6), ("base", 12.1), ("paper", 32.6)])
def test_presets_have_their_sizes_on_a_base_encoder(preset: str, millions: float) -> None:
    with torch.device("meta"):
        head = DPTHead(768, preset=preset)
    count = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.06)


def test_mistakes_are_told() -> None:
    with pytest.raises(UnknownNameError, match="'tiny'"):
        DPTHead(8, preset="tini")
    with pytest.raises(SettingError, match="1, 2 or 4 taps, not 3"):
        DPTHead(8, taps=3)
    with pytest.raises(SettingError, match="reads 4 taps, not 1"):
        DPTHead(8)(tokens(1), (8, 8))
    with pytest.raises(SettingError, match="16 channels, not 32"):
        LinearHead(8)(tokens(1, width=16), (8, 8))
    assert set(DPT_PRESETS) == {"tiny", "base", "paper"}
