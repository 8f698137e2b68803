"""What a model's folder says: ``model.yaml`` read strictly, with every problem named by its line.

Begin with :mod:`perennial.spec.model`, the whole of ``model.yaml``; :mod:`perennial.spec.folder` reads a folder. Nothing heavy
is imported here, since Airflow reads folders whenever it parses DAGs.
"""
