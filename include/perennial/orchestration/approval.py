"""The task that asks a person whether a version may become champion. It uses Airflow's human-in-the-loop.

The run waits without a worker until an approver answers, in the UI or by the REST API, or until the time is up. Then
the judge acts on the answer (:mod:`perennial.judge.people`) and records it.

Neighbours: :mod:`perennial.reports.approval` says what is shown and what an answer means.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context, Param
from airflow.sdk.exceptions import AirflowSkipException

from perennial.judge.people import APPROVE, ASK, REJECT, as_answer, subject
from perennial.orchestration.runs import stage_run
from perennial.spec.model import ModelSpec


def ask_approval(spec: ModelSpec, decided_by: str) -> ApprovalRequest:
    """The task that asks about a version.

    Args:
        spec: the model's spec.
        decided_by: the task that registers the version, and whose result is the gates' decision.
    """
    decided = f"ti.xcom_pull(task_ids='{decided_by}')"
    return ApprovalRequest(
        task_id=ASK,
        decided_by=decided_by,
        subject=subject(spec.name, f"{{{{ {decided}['version'] }}}}"),
        body=f"{{{{ {decided}['comparison'] }}}}",
        options=[APPROVE, REJECT],
        # Used when the time is up. The missing name of a user tells this apart from a person's refusal.
        defaults=REJECT,
        params={
            "words": Param("", type=["null", "string"], title="Why", description_md="Kept in the ledger with your answer.")
        },
        assigned_users=[{"id": user, "name": user} for user in spec.approval.approvers] or None,
        response_timeout=spec.approval.within,
    )


class ApprovalRequest(HITLOperator):
    """Airflow's request for a person's input, skipped if the gates refused the version.

    Airflow's ApprovalOperator skips all downstream tasks after a refusal, so no task would record the refusal.

    Args:
        decided_by: see :func:`ask_approval`.
        arguments: of the operator.
    """

    def __init__(self, *, decided_by: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.decided_by = decided_by

    def execute(self, context: Context) -> Any:
        from perennial.stages.promote import Decided, announce_question

        model = self.dag_id.partition(".")[0]
        decided = context["ti"].xcom_pull(task_ids=self.decided_by)
        if not decided["decision"]["promote"]:
            raise AirflowSkipException(f"{model} version {decided['version']} did not pass its gates: nobody is asked")
        with stage_run(model) as run:
            until = datetime.now(UTC) + (self.response_timeout or timedelta())
            public = run.deployment.settings.airflow_public_url
            page = self.generate_link_to_ui(task_instance=context["ti"], base_url=public) if public else None
            announce_question(run.stage, Decided.from_json(decided), until=until, page=page)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        given = super().execute_complete(context, event)
        user = given["responded_by_user"]
        name = None if user is None else user["name"]
        return as_answer(name, given["chosen_options"], given["params_input"].get("words"), given["responded_at"])
