"""``python -m pixio_pretrain`` is ``pixio-pretrain``."""

from pixio_pretrain.cli import main

if __name__ == "__main__":
    main()
