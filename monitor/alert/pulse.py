"""One beat outwards: a post whose receiver pages somebody when no more of them come."""

from __future__ import annotations

from typing import Final

import httpx

PULSE_SECONDS: Final = 10.0
"""Longest wait in each step of a post."""


def send_pulse(url: str) -> str:
    """Post once, with an empty body; what failed in a few words, empty when it was taken.

    Nothing that was said names the URL, which is the receiver's secret. No redirect is followed.
    """
    try:
        with (
            httpx.Client(follow_redirects=False, timeout=PULSE_SECONDS) as client,
            client.stream("POST", url) as answer,
        ):
            return "" if answer.is_success else f"the receiver answered {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return type(error).__name__
