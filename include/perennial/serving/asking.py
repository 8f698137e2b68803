"""Asks a scorer from the command line."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx

from perennial.core.errors import NotAnswered


def ask(url: str, model: str, body: dict[str, Any], *, token: str | None) -> dict[str, Any]:
    """The scorer's answer to a question in the plain form.

    Args:
        url: of the scorer.
        model: the model.
        body: what is asked.
        token: for the scorer; None if it needs none.

    Raises:
        NotAnswered: the scorer does not answer, or says why it answers nothing.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # A proxy of the environment is for other servers.
        answer = httpx.post(
            f"{url.rstrip('/')}/models/{quote(model, safe='')}/predict", json=body, headers=headers, timeout=30, trust_env=False
        )
        said = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotAnswered(f"no scorer answers at {url} ({type(error).__name__}): start one with `perennial serve`") from error
    except json.JSONDecodeError as error:
        raise NotAnswered(f"what answers at {url} is no scorer: it gives no JSON") from error
    if answer.status_code != 200 or not isinstance(said, dict):
        raise NotAnswered(
            str(said.get("error", answer.status_code)) if isinstance(said, dict) else f"no scorer answers at {url}"
        )
    return said
