"""Seconds of single look-ups by Feast's Python SDK: prints them as JSON. Run in the repository, with Feast's Python."""

import json
import sys
import time

from feast import FeatureStore

keys, warm = json.loads(sys.stdin.read()), int(sys.argv[1])
store = FeatureStore(".")
names = [f"features:{field.name}" for field in store.get_feature_view("features").features]
took = []
for key in keys:
    began = time.perf_counter()
    found = store.get_online_features(features=names, entity_rows=[key]).to_dict()
    took.append(time.perf_counter() - began)
    assert found["distance"][0] is not None
sys.stdout.write(json.dumps(took[warm:]))
