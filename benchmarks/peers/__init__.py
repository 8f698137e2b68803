"""The weekly cycle of a model by Perennial, Dagster, Metaflow, ZenML and a plain Airflow DAG; see ``__main__``."""
