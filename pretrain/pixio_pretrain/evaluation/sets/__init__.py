"""Labelled data sets in the layouts that their makers publish, checked before anything is trained on them."""

from pixio_pretrain.evaluation.sets.boxes import BOX_SETS, BoxSet
from pixio_pretrain.evaluation.sets.classes import ClassSet, open_classes
from pixio_pretrain.evaluation.sets.depths import DEPTH_SETS, DepthSet
from pixio_pretrain.evaluation.sets.masks import IGNORED, MASK_SETS, MaskSet

__all__ = [
    "BOX_SETS",
    "DEPTH_SETS",
    "IGNORED",
    "MASK_SETS",
    "BoxSet",
    "ClassSet",
    "DepthSet",
    "MaskSet",
    "open_classes",
]
