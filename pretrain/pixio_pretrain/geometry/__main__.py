"""``python -m pixio_pretrain.geometry``."""

from pixio_pretrain.geometry.cli import main

main()
