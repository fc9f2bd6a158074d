"""The MAE objective (arXiv 2111.06377): masked autoencoding with single patches hidden and a light decoder."""

from dataclasses import dataclass

from pixio_pretrain.objectives.masked import PixioConfig


@dataclass(kw_only=True)
class MaeConfig(PixioConfig):
    """Settings of MAE: Pixio's, with the defaults of MAE's own pre-training.

    Encoders of MAE's family have one class token and fixed sin-cos positions, and so has the decoder then.
    """

    name: str = "mae"
    encoder: str = "mae_vitt16"
    decoder_depth: int = 8
    mask_block: int = 1
    mirror: bool = True
