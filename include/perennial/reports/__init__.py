"""Pages and tables for people: the board, model cards, release reports, lineage and history.

Begin with :mod:`perennial.reports.documents`, which makes every page, or with :mod:`perennial.reports.board`.
"""
