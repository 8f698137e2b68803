"""The command line: ``perennial …``, one function per command.

Begin with :mod:`perennial.cli.main`. Imports any package below but :mod:`perennial.orchestration`.
"""
