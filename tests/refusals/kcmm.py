"""KC-MMBench: its tables, predictions, details, and the options of eval-kcmm."""

from pathlib import Path

HEADER = "index\tquestion\tanswer\timage_path\n"
TABLES = {
    "good/SPU": "0\t?\t是\ta.png\n1\t?\t否\ta.png\n",
    "rows/SPU": "\t?\t是\ta.png\n1\t?\t也许\ta.png\n2\t?\t是\n3\t?\t是\t\n"
    "4\t?\t是\t[f()]\n5\t?\t是\t[1]\n6\t?\t是\ta.png\n6\t?\t是\ta.png\n",
    "rows/Video_Topic": "0\t?\t是否\ta.png\n",
    "rows/Video_Order": "0\t?\t\ta.png\n",
    "gone/SPU": "0\t?\t是\ta.png\n1\t?\t是\tgone.png\n",
    "all/CPV": '0\t?\t{"a": "b"}\ta.png\n',
    "all/SPU": "0\t?\t是\ta.png\n",
}
PREDICTIONS = {
    "good.jsonl": '{"task": "SPU", "index": 0, "prediction": "是"}\n',
    "bad.jsonl": '{"task": "SPU", "index": 0, "prediction": "是"}\n{"task": "SPU", "index": 0, "prediction": "是"}\n[]\n{}\n'
    '{"index": 0}\n{"index": 9, "prediction": ""}\n{"task": "SUP", "index": 0, "prediction": ""}\n'
    '{"task": "SPU", "index": 9, "prediction": ""}\n{"task": "CPV", "index": 0, "prediction": ""}\n',
    "cut.json": '[{"task": "SPU"',
    "cut.xlsx": "PK\x03\x04",
    "nothing.jsonl": "",
    "columns.tsv": "index\tanswer\n0\t是\n",
    "cpv.jsonl": '{"task": "CPV", "index": 0, "prediction": "{}"}\n',
    "other.jsonl": '{"task": "SPU", "index": 1, "prediction": "是", "right": true}\n',
    "right.jsonl": '{"task": "SPU", "index": 0, "prediction": "是", "right": true}\n',
}


def furnish():
    for name, rows in TABLES.items():
        path = Path("kcmm", f"{name}.tsv")
        (path.parent / "images").mkdir(parents=True, exist_ok=True)
        (path.parent / "images" / "a.png").write_bytes(Path("pictures/0.png").read_bytes())
        path.write_text(HEADER + rows)
    for name in ("columns", "base64", "empty"):
        Path("kcmm", name).mkdir()
    Path("kcmm/columns/SPU.tsv").write_text("id\tquestion\n0\t?\n")
    Path("kcmm/base64/SPU.tsv").write_text("index\tquestion\tanswer\timage\n0\t?\t是\t!\n1\t?\t是\taGVsbG8=\n")
    for name, text in PREDICTIONS.items():
        Path("kcmm", name).write_text(text)


CASES = """
kvtools eval-kcmm
kvtools eval-kcmm kcmm/good
kvtools eval-kcmm kcmm/good --model keye.safetensors --predictions kcmm/good.jsonl
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --judge http://localhost:1
kvtools eval-kcmm kcmm/good --endpoint localhost
kvtools eval-kcmm kcmm/good --endpoint user:word@localhost
kvtools eval-kcmm kcmm/good --endpoint http://localhost:1 --key-variable sk-secret
OPENAI_API_KEY=schlüssel kvtools eval-kcmm kcmm/good --endpoint http://localhost:1
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --require 101
kvtools eval-kcmm kcmm/good --compare kcmm/good.jsonl kcmm/good.jsonl --shard 0/2
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --task SUP
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --fps 0
kvtools eval-kcmm -q kcmm/all --predictions kcmm/cpv.jsonl --score reference
kvtools eval-kcmm nowhere --predictions kcmm/good.jsonl
kvtools eval-kcmm kcmm/empty --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/columns --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/columns kcmm/good --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/rows kcmm/good --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/base64 kcmm/good --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/gone --predictions kcmm/good.jsonl
kvtools eval-kcmm -q kcmm/good --predictions kcmm/bad.jsonl
kvtools eval-kcmm kcmm/good --predictions kcmm/other.jsonl --predictions kcmm/cut.json
kvtools eval-kcmm kcmm/good --predictions kcmm/cut.xlsx
kvtools eval-kcmm kcmm/good --predictions kcmm/columns.tsv
kvtools eval-kcmm kcmm/good --predictions kcmm/empty
kvtools eval-kcmm kcmm/good --predictions kcmm/nothing.jsonl
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --task SPU --task High_like
kvtools eval-kcmm -q kcmm/good --predictions kcmm/cpv.jsonl
kvtools eval-kcmm -q kcmm/good --predictions kcmm/good.jsonl --require 99
kvtools eval-kcmm --compare kcmm/good.jsonl kcmm/good.jsonl
kvtools eval-kcmm --compare kcmm/other.jsonl kcmm/right.jsonl
kvtools eval-kcmm kcmm/all --compare kcmm/cpv.jsonl kcmm/cpv.jsonl --score reference
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --details kcmm/good.jsonl
kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --details nowhere/d.jsonl
SLURM_JOB_END_TIME=1 kvtools eval-kcmm kcmm/good --model keye.safetensors --details kcmm/d.jsonl
SLURM_JOB_END_TIME=1 kvtools eval-kcmm kcmm/good --predictions kcmm/good.jsonl --score reference --judge http://h --details d
[kvtools.keye.bench.details.Details("kcmm/e.jsonl", "", force=False) for _ in range(2)]
"""
