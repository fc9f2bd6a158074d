"""Self-curation: score a source once, then train on what is worth it (arXiv 2512.15715, section 3.3).

``command`` is ``pixio-pretrain score``: it calls ``scoring``, which measures images (``scores``) into a ``table``, and
``report`` and ``pixio_layout``, which write it in other forms. Training reads the table by ``selection``.
"""

from pixio_pretrain.curation.selection import CurationConfig

__all__ = ["CurationConfig"]
