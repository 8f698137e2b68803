"""What people look at: the board, model cards, release reports, lineage and history.

Begin with :mod:`perennial.reports.documents`, which every page is made of, or :mod:`perennial.reports.board`.
"""
