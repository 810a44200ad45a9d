"""``python -m steering`` is ``steer``; torchrun starts it this way."""

from steering.cli import main

main()
