import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixio_pretrain.objectives import create_objective
from pixio_pretrain.objectives.masked import MaskedAutoencoder
from pixio_robot.errors import ImageError, SettingError, UnknownNameError
from pixio_robot.images import normalize

TINY: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "patch_size": 2, "image_size": 8, "class_tokens": 3}
TINY |= {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2, "mask_block": 2, "mask_ratio": 0.5}


def tiny(**changes: Any) -> MaskedAutoencoder:
    return create_objective("pixio", seed=0, **(TINY | changes))


def pictures(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_an_image_worked_by_hand() -> None:
    # One patch of 2 x 2 is seen, three are hidden; the decoder is made to answer zero everywhere.
    model = tiny(image_size=4, mask_block=1, mask_ratio=0.75)
    torch.nn.init.zeros_(model.decoder_pred.weight)
    torch.nn.init.zeros_(model.decoder_pred.bias)
    image = torch.full((1, 3, 4, 4), 0.5)
    image[0, :, 0, 0] = 1.0  # a white corner in the patch that is seen, so it must not count
    image[0, 0, 3, 3] = 1.0  # one red value in the last patch
    output = model(image, noise=torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    # The last patch: 12 values, of which one stands out. With x_i = a_i + s * [i = red], normalised by mean m and
    # unbiased variance v, the answer zero costs mean((x - m)^2) / v = 11/12, whatever the values are.
    # The two grey patches are flat per channel, but the channels differ by ImageNet's mean and deviation: 11/12 again.
    assert output.mask.tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert output.loss.item() == pytest.approx(11 / 12, rel=1e-4)
    assert output.prediction.shape == (1, 4, 2 * 2 * 3)


def test_pixels_of_a_patch_are_ordered_row_column_channel() -> None:
    model = tiny(image_size=4, mask_block=1, mask_ratio=0.75)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 2, 3, 0] = 1.0  # blue, lower left pixel of the lower left patch
    targets = model.targets(image)  # used as normalised pixels here
    assert targets.abs().amax(dim=-1).argmax().item() == 2
    assert targets[0, 2].argmax().item() == (1 * 2 + 0) * 3 + 2


def test_targets_have_no_mean_and_unit_unbiased_variance() -> None:
    targets = tiny().targets(torch.randn(2, 3, 8, 8))
    assert targets.mean(dim=-1).abs().max() < 1e-5
    torch.testing.assert_close(targets.var(dim=-1), torch.ones(2, 16), rtol=1e-4, atol=0)


def test_a_flat_patch_does_not_divide_by_zero() -> None:
    output = tiny()(torch.zeros(1, 3, 8, 8))
    output.loss.backward()
    assert output.loss.isfinite()


def test_the_same_noise_gives_the_same_answer_and_other_noise_another() -> None:
    model, images = tiny(), pictures()
    noise = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))
    first, again, other = model(images, noise=noise), model(images, noise=noise), model(images, noise=1 - noise)
    assert torch.equal(first.prediction, again.prediction)
    assert torch.equal(first.mask, again.mask)
    assert torch.equal(other.mask, 1 - first.mask)  # half is hidden: turning the noise round swaps the halves
    assert torch.equal(model.views(images, noise=noise)[0].mask(), first.mask)


@given(
    st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.2, 0.5, 0.6, 0.75, 0.9]), st.sampled_from(["mae", "pixio"])
)
@settings(max_examples=25, deadline=None)
def test_exactly_the_promised_number_of_patches_is_seen(side: int, block: int, ratio: float, name: str) -> None:
    sizes = TINY | {"image_size": 2 * side * block, "mask_block": block, "mask_ratio": ratio, "class_tokens": 1}
    try:
        model = create_objective(name, **sizes)
    except SettingError:
        assert math.floor(round(side**2 * (1 - ratio), 9)) == 0 or side == 1
        return
    encoded: list[int] = []
    model.vit.norm.register_forward_hook(lambda _, __, tokens: encoded.append(tokens.shape[1]))
    promised = math.floor(round(side**2 * (1 - ratio), 9)) * block**2
    mask = model(torch.rand(2, 3, model.image_size, model.image_size)).mask
    assert (mask == 0).sum(dim=1).tolist() == [promised, promised]
    assert encoded == [1 + promised]


def test_without_noise_masks_are_drawn_anew() -> None:
    model, images = tiny(mask_block=1), pictures(32)
    assert not torch.equal(model(images).mask, model(images).mask)


def test_the_loss_sees_hidden_patches_only() -> None:
    model, images, noise = tiny(), pictures(1), torch.tensor([[0.1, 0.2, 0.8, 0.9]])
    output = model(images, noise=noise)
    (gradient,) = torch.autograd.grad(output.loss, output.prediction)
    assert torch.equal((gradient != 0).any(dim=-1).float(), output.mask)


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    model, images, noise = tiny(), pictures(1), torch.tensor([[0.1, 0.2, 0.8, 0.9]])
    changed = images.clone()
    changed[:, :, 4:] = 255 - changed[:, :, 4:]  # the lower half is hidden
    assert torch.equal(model(images, noise=noise).prediction, model(changed, noise=noise).prediction)


def test_float_and_uint8_images_are_the_same_images() -> None:
    model, images, noise = tiny(), pictures(), torch.rand(3, 4)
    torch.testing.assert_close(model(images, noise=noise).loss, model(images / 255, noise=noise).loss)


def test_class_tokens_stay_in_the_decoder_with_positions_of_their_own() -> None:
    model = tiny()
    model(pictures()).loss.backward()
    gradient = model.decoder_pos_embed.grad
    assert gradient is not None
    assert (gradient[0, :3].abs().sum(dim=-1) > 0).all()
    assert model.vit.cls_token.grad is not None
    assert (model.vit.cls_token.grad[0].abs().sum(dim=-1) > 0).all()


def test_seeing_every_patch_is_the_plain_encoder() -> None:
    model, images = tiny(), pictures()
    tokens = model.encoder(images)
    every = torch.arange(16).expand(3, -1)
    with torch.no_grad():
        latent = model.encode(normalize(images, torch.float32), every)
    torch.testing.assert_close(latent, torch.cat([tokens.classes, tokens.patches], dim=1), rtol=1e-4, atol=1e-5)


def test_the_encoder_is_a_frozen_copy() -> None:
    model = tiny()
    encoder, before = model.encoder, model.encoder.fingerprint
    with torch.no_grad():
        model.vit.cls_token.add_(1)
    assert encoder.fingerprint == before
    assert model.encoder.fingerprint != before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_perfect_prediction_is_rebuilt_to_the_very_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, noise = tiny(), pictures(), torch.rand(3, 4)
    perfect = model.targets(normalize(images, torch.float32))
    monkeypatch.setattr(model, "decode", lambda latents, orders: perfect)
    shown = model.reconstruct(images, noise=noise)
    assert torch.equal(shown.original, images)
    assert (shown.rebuilt.int() - images.int()).abs().max() <= 1  # rounding
    seen = (
        model.views(images, noise=noise)[0].mask().view(3, 1, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
        == 0
    )
    assert torch.equal(torch.where(seen, shown.masked, images), images)
    assert (shown.masked.float().std(dim=(2, 3)) > 0).all()
    assert shown.masked.dtype == torch.uint8


@pytest.mark.parametrize(("name", "class_tokens"), [("mae", 1), ("pixio", 3)])
def test_the_same_seed_draws_the_same_weights(name: str, class_tokens: int) -> None:
    settings = TINY | {"class_tokens": class_tokens}
    first, again, other = (create_objective(name, seed=seed, **settings).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["vit.cls_token"], other["vit.cls_token"])


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio'"):
        create_objective("pixo")
    with pytest.raises(UnknownNameError, match="Did you mean 'mask_block'"):
        create_objective("pixio", mask_blok=2)
    with pytest.raises(UnknownNameError, match="Did you mean 'pixio_vitt16'"):
        create_objective("pixio", encoder="pixio_vit_t16")


@pytest.mark.parametrize(
    "wrong", [{"mask_block": 3}, {"decoder_heads": 3}, {"decoder_depth": 0}, {"drop_path": 1.0}, {"image_size": 9}]
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        tiny(**wrong)


def test_images_of_another_size_and_noise_of_another_shape_are_refused() -> None:
    model = tiny()
    with pytest.raises(ImageError, match="native 8 x 8 pixels, not 16 x 16"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(SettingError, match=r"here \[3, 4\], not \[3, 16\]"):
        model(pictures(), noise=torch.rand(3, 16))
