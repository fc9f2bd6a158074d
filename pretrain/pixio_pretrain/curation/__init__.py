"""Self-curation: score a source once, then train on what is worth it (arXiv 2512.15715, section 3.3)."""

from pixio_pretrain.curation.scores import ReconstructionLoss, histogram_score
from pixio_pretrain.curation.scoring import score_source
from pixio_pretrain.curation.selection import Curation, CurationConfig
from pixio_pretrain.curation.table import read_table

__all__ = ["Curation", "CurationConfig", "ReconstructionLoss", "histogram_score", "read_table", "score_source"]
