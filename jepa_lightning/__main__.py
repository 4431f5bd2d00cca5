"""``python -m jepa_lightning``, the same as ``jepa``."""

from jepa_lightning.cli import main

if __name__ == "__main__":
    main()
