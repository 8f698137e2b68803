"""The command line: ``perennial …``, one function per command, with its arguments beside it.

Begin with :mod:`perennial.cli.main`. Imports any package below but :mod:`perennial.orchestration`.
"""
