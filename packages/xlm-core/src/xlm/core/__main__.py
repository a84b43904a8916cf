"""``python -m xlm.core`` is the command ``xlm``; ``torchrun -m xlm.core`` starts it in several processes."""

from xlm.core.command.cli import main

main()
