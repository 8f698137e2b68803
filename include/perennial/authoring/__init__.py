"""Looks at somebody's data, and drafts the folder of a model from it: :mod:`perennial.authoring.profile` looks,
:mod:`perennial.authoring.draft` writes."""
