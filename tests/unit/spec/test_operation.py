"""What ``alerts`` says does not contradict itself."""

from __future__ import annotations

from pathlib import Path

from tests.unit.spec.late import GOOD, problems


def test_a_channel_without_a_connection_is_refused_in_each_route(tmp_path: Path) -> None:
    text = GOOD + 'alerts:\n  channel: "#ours"\n  routes:\n    - channel: "#theirs"\n    - {slack: team, channel: "#all"}\n'

    assert problems(tmp_path, text) == [
        "model.yaml:27: alerts.channel: requires a Slack connection; name it under slack",
        "model.yaml:29: alerts.routes.0.channel: requires a Slack connection; name it under slack",
    ]
