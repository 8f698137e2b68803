"""The command line: ``perennial …``. Each command is one function, declared together with its arguments.

Begin with :mod:`perennial.cli.main`. May import all lower packages except :mod:`perennial.orchestration`.
"""
