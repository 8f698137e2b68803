"""The features of the flights, as a feature view of Feast."""

import os
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

flight = Entity(name="flight", join_keys=["flight_id"], value_type=ValueType.STRING)
features = FeatureView(
    name="features",
    entities=[flight],
    ttl=timedelta(0),
    schema=[
        *(Field(name=name, dtype=Float64) for name in os.environ["BENCH_NUMERIC"].split(",")),
        *(Field(name=name, dtype=String) for name in os.environ["BENCH_CATEGORICAL"].split(",")),
    ],
    source=FileSource(path=os.environ["BENCH_FEATURES"], timestamp_field="as_of"),
)
