"""Records as JSON for people and scripts: fields and shapes, and the document itself where the record is one."""

import json
from typing import Any

from kvtools.artifact.blob import NAMES
from kvtools.artifact.stream import Record


def as_text(record: Record) -> dict[str, Any]:
    """{"record", "key", "kind", "tensors": {name: [dtype, [shape]]}, … the record's own fields}; a tensor named `json`
    is shown as the document it holds."""
    shapes = {name: [NAMES[a.dtype], list(a.shape)] for name, a in sorted(record.tensors.items())}
    line = {**record.fields, "record": record.number, "key": record.key, "tensors": shapes}
    if "json" in record.tensors:
        line["json"] = json.loads(record.tensors["json"].tobytes())
    return line
