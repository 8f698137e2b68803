"""Looks at somebody's data, and drafts the folder of a model from it.

Begin with :mod:`perennial.authoring.profile`, which looks; :mod:`perennial.authoring.draft` writes. The command is in
:mod:`perennial.cli.starting`.
"""
