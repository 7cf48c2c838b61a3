"""What a fake model's name says about it."""

from __future__ import annotations

from typing import Literal

from modeld.errors import InvalidRequestError

WINDOW = 4096


def fake_settings(name: str) -> dict[str, float]:
    """The settings in a name such as ``fake:delay=0.01``.

    :raises InvalidRequestError: an unknown or malformed setting.
    """
    settings = {"delay": 0.0, "whole": 0.0, "copies": 0.0, "rank": 0.0, "window": float(WINDOW)}
    for item in filter(None, name.partition(":")[2].split(",")):
        key, _, value = item.partition("=")
        try:
            if key not in settings:
                raise ValueError
            settings[key] = float(value)
        except ValueError:
            raise InvalidRequestError(
                f"the fake model knows {', '.join(settings)} as settings, not {item!r}", parameter="name"
            ) from None
    return settings


def fake_pooling(name: str) -> Literal["mean", "rank"]:
    """What a fake model of that name makes of many vectors."""
    return "rank" if fake_settings(name)["rank"] else "mean"
