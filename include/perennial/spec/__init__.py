"""What a model's folder says: ``model.yaml`` read strictly, with every problem reported by its line.

Begin with :mod:`perennial.spec.model`, the whole of ``model.yaml``. :mod:`perennial.spec.folder` reads a folder. This package
imports nothing heavy, because Airflow reads folders whenever it parses DAGs.
"""
