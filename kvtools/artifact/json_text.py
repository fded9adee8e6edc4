"""JSON that others wrote: what cannot be read is a ValueError, whatever the reason."""

import json
from typing import Any


def read_json(text: str | bytes, **options: Any) -> Any:
    """What a text holds as JSON. options: of json.loads. Raises ValueError, too, where it is nested too deeply."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
