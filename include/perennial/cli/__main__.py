"""``python -m perennial.cli``: the command ``perennial``, where its script is not on the path."""

from perennial.cli.main import main

main()
