"""Pixio against an independent implementation: lightly's, which is MIT-licensed and written from the paper."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixio_pretrain.objectives import create_objective
from pixio_robot.images import normalize

pytest.importorskip("timm")
modules: Any = pytest.importorskip("lightly.models.modules")
utils: Any = pytest.importorskip("lightly.models.utils")
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

SIZES: dict[str, Any] = {"width": 32, "depth": 3, "heads": 4, "patch_size": 4, "image_size": 32, "class_tokens": 8}
SIZES |= {"decoder_width": 24, "decoder_depth": 4, "decoder_heads": 3, "mask_block": 2, "mask_ratio": 0.75}


class Lightly(nn.Module):
    """Pixio put together from lightly's parts as lightly's example does; a class token and seven registers."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=0, reg_tokens=7
        )
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(32, 24)
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(64, 24, 4, 3, num_prefix_tokens=8)
        self.predict = nn.Linear(24, 4 * 4 * 3)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction and target of the hidden patches [b m p*p*3], and their indices [b m]."""
        keep, hide = utils.random_grid_token_mask((len(pixels), 72), 0.75, grid_size=2, num_prefix_tokens=8)
        latent = self.backbone.encode(pixels, idx_keep=keep)
        tokens = utils.repeat_token(self.decoder.mask_token, (len(pixels), 72))
        tokens = utils.set_at_index(tokens, keep, self.embed(latent))
        decoded = utils.get_at_index(self.decoder.decode(self.decoder.add_pos_embed(tokens)), hide)
        targets = utils.get_at_index(utils.patchify(pixels, 4), hide - 8)
        return self.predict(decoded), utils.normalize_mean_var(targets), hide - 8


def to_ours(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a ``Lightly`` under the names of a MaskedAutoencoder."""
    names = {"decoder.mask_token": "mask_token", "decoder.pos_embed": "decoder_pos_embed"}
    for key, value in state.items():
        if key == "backbone.vit.cls_token":
            yield "vit.cls_token", torch.cat([value, state["backbone.vit.reg_token"]], dim=1)
        elif key.startswith("backbone.vit.") and "reg_token" not in key:
            yield key.removeprefix("backbone."), value
        elif key.startswith(("embed.", "predict.")):
            yield "decoder_" + key.replace("predict", "pred"), value
        elif key.startswith("decoder."):
            yield names.get(key, key.replace("decoder.", "decoder_", 1)), value


def test_pixio_equals_lightlys_on_the_same_weights_and_mask() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs, ours = Lightly(), create_objective("pixio", **SIZES)
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms, too
        ours.load_state_dict(dict(to_ours(theirs.state_dict())))
        images = torch.rand(3, 3, 32, 32)
        torch.manual_seed(1)  # lightly draws its noise itself
        noise = torch.rand(3, 16)
        torch.manual_seed(1)
        predicted, targets, hidden = theirs(normalize(images, torch.float32))
    found = ours(images, noise=noise)
    assert torch.equal(torch.zeros(3, 64).scatter(1, hidden, 1.0), found.mask)
    torch.testing.assert_close(utils.get_at_index(found.prediction, hidden), predicted, rtol=0, atol=1e-5)
    expected = nn.functional.mse_loss(predicted, targets)
    torch.testing.assert_close(found.loss, expected, rtol=0, atol=1e-5)
    found.loss.backward()
    expected.backward()
    gradients = {key: value.grad for key, value in theirs.named_parameters() if value.grad is not None}
    expected_gradients = dict(to_ours(gradients))
    assert {key for key, _ in ours.named_parameters()} - expected_gradients.keys() == {
        "vit.pos_embed",
        "decoder_pos_embed",
    }
    for key, gradient in expected_gradients.items():
        torch.testing.assert_close(ours.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-5)
