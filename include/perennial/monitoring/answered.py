"""What two versions have answered online, in place of what they predicted in the batch.

Neighbours: :mod:`perennial.serving.recorded` has published the answers; :mod:`perennial.monitoring.shadowing` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from perennial.core.intervals import Interval
from perennial.core.sql import connect, quoted
from perennial.lake.publish import Lake
from perennial.scoring.challengers import Reign
from perennial.serving.parity import SQL_TYPES
from perennial.serving.recorded import ASKED_AT
from perennial.serving.recorded import DATASET as REQUESTS
from perennial.serving.recorded import TABLE as ONLINE_REQUESTS
from perennial.spec.folder import ModelFolder


def as_answered(folder: ModelFolder, lake: Lake, reign: Reign, version: int, both: pa.Table, said: Sequence[str]) -> pa.Table:
    """The same rows, each also with the predictions that both versions made online, or else the batch's.

    So each entity counts once. Its newest pair of answers counts. What a client has described, or given beside a key, does not
    count: clients are not to decide who answers.

    Args:
        folder: the model's folder.
        lake: has the published requests.
        reign: of the champion.
        version: in its shadow.
        both: rows that both predicted in the batch.
        said: the columns of a prediction.

    Returns:
        The rows, with these predictions in columns with the suffix ``_answered``, and ``_online``: whether they are such.
        The same rows if nobody was asked.
    """
    spec = folder.spec
    asked = lake.ledger.publications(spec.name, REQUESTS)
    began, head = reign.promotion.completed_at, lake.ledger.head(spec.name, REQUESTS).snapshots.get(ONLINE_REQUESTS)
    end = max((one.interval.end for one in asked), default=None)
    if began is None or end is None or head is None or began >= end or not both.num_rows:
        return both
    columns = ["request_id", "row", "version", "form", "entity", "event_time", "came", "prediction", ASKED_AT]
    key = spec.entity_table.key
    of_key = [
        f"(entity->>'$[{place}]')::{SQL_TYPES[spec.entity_table.columns[name].type]} AS {quoted(name)}"
        for place, name in enumerate(key)
        if name != spec.event_time
    ]
    kinds = {"prediction": "{}::DOUBLE"}
    if spec.task == "multiclass_classification":
        kinds = {"prediction": "{}->>'$.prediction'", "probabilities": "({}->'$.probabilities')::VARCHAR"}
    predicted = [
        f"{kinds[name].format(whose)} AS {quoted(f'_{name}{suffix}')}"
        for name in said
        for whose, suffix in (("champions", ""), ("its", "_shadow"))
    ]
    champions = ", ".join(str(one) for one in reign.versions)
    with (
        TemporaryDirectory() as scratch,
        connect(Path(scratch)) as connection,
        lake.scan(
            spec.name, ONLINE_REQUESTS, head, columns=columns, interval=Interval(began, end), event_time=ASKED_AT
        ) as requests,
    ):
        connection.register("requests", requests)
        pairs = connection.sql(f"""
            WITH pairs AS (
                SELECT entity, event_time, {ASKED_AT}, request_id, row,
                    max(prediction) FILTER (version IN ({champions})) AS champions,
                    max(prediction) FILTER (version = {version}) AS its
                FROM requests
                WHERE form = 'key' AND entity IS NOT NULL AND event_time IS NOT NULL
                  AND coalesce(json_array_length(came, '$.given'), 0) = 0
                GROUP BY entity, event_time, {ASKED_AT}, request_id, row
                HAVING champions IS NOT NULL AND its IS NOT NULL
                QUALIFY row_number() OVER (
                    PARTITION BY entity, event_time ORDER BY {ASKED_AT} DESC, request_id, row
                ) = 1
            )
            SELECT {", ".join([*of_key, f"event_time AS {quoted(spec.event_time)}", *predicted])} FROM pairs
        """).to_arrow_table()
    identity = list(dict.fromkeys([*key, spec.event_time]))
    types = {name: both.schema.field(name).type for name in identity}
    types |= {f"_{name}{suffix}": both.schema.field(name).type for name in said for suffix in ("", "_shadow")}
    pairs = pairs.cast(pa.schema([(name, types[name]) for name in pairs.column_names]))
    joined = both.join(pairs, keys=identity, join_type="left outer")
    online = pc.is_valid(joined["_prediction"])
    for name in (f"{one}{suffix}" for one in said for suffix in ("", "_shadow")):
        answered = pc.coalesce(joined[f"_{name}"], joined[name])
        joined = joined.drop_columns([f"_{name}"]).append_column(f"{name}_answered", answered)
    return joined.append_column("_online", online)
