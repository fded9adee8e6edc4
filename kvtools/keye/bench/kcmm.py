# ruff: noqa: RUF001 prompts are Chinese
"""KC-MMBench: six tasks on short videos, as covers, screenshots and text; its files, its prompts, what counts as right.

A folder holds tables, in itself or in `subsets/`, by their published names or by the names of the data sets, and `images/`.
Columns: index, question, answer, image_path (a path, or a list of paths as Python writes it), or image (base64). Not here: how
words of an answer are read (post_process.py, rules.py).

Source: evaluation/KC-MMBench of the Keye-VL repository. The prompts of the judge are ours, since the specification has their
sense and not their words.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

from kvtools.errors import Corrupt, Missing
from kvtools.keye.bench import post_process, rules
from kvtools.keye.bench.benchmark import JudgeRequest, Question, QuestionSet, Verdict
from kvtools.keye.bench.kcmm_files import read_folder

# task: the names of its file, without the suffix; a name of either case is found
TASKS = {
    "CPV": ("CPV",),
    "Hot_Videos_Aggregation": ("Video_Topic", "Hot_Videos_Aggregation"),
    "Collection_Order": ("Video_Order", "Collection_Order"),
    "Pornographic_Comment": ("PornComment", "Pornographic_Comment"),
    "High_like": ("High_like",),
    "SPU": ("SPU",),
}
YES_NO = ("Pornographic_Comment", "High_like", "SPU")
SUFFIX = "\n请直接给出结论，回答是或者否，不需要做额外分析，并且不许回答不确定"
# per cent, of the report's table 3 and the benchmark's page: macro means are of those
PUBLISHED = {
    "CPV": {"think": 55.13, "auto": 55.9},
    "Hot_Videos_Aggregation": {"think": 54.30, "auto": 55.0},
    "Collection_Order": {"think": 84.43, "auto": 82.0},
    "Pornographic_Comment": {"think": 71.96, "auto": 70.4},
    "High_like": {"think": 55.25, "auto": 53.4},
    "SPU": {"think": 87.05, "auto": 84.9},
}
PUBLISHED_OTHERS = {
    "Qwen2.5-VL-3B": (12.39, 42.38, 36.88, 56.61, 48.85, 74.09),
    "Qwen2.5-VL-7B": (20.08, 46.35, 59.83, 56.08, 47.94, 81.34),
    "InternVL3-8B": (14.95, 52.31, 64.75, 57.14, 47.03, 75.64),
    "MiMo-VL-7B": (16.66, 49.00, 78.68, 68.25, 51.14, 81.86),
    "Keye think": tuple(row["think"] for row in PUBLISHED.values()),
    "Keye auto": tuple(row["auto"] for row in PUBLISHED.values()),
}
RIGHT, WRONG = "回答正确", "回答错误"


class KCMMBench:
    """The benchmark; see above."""

    name = "kcmm"
    tasks = tuple(TASKS)

    def task_of(self, name: str) -> str | None:
        """The task of a data set's or a table's name, in either case."""
        return task_of(name)

    def read(self, sources: Sequence[str], only: Collection[str] = (), *, needs_media: bool) -> QuestionSet:
        """The questions of all folders, or of single tables. Raises Corrupt where there is no table at all."""
        found = QuestionSet()
        seen: set[tuple[str, str]] = set()
        for src in sources:
            try:
                read_folder(src, task_of, _checked, found, seen, only, needs_media=needs_media)
            except (Corrupt, Missing) as fault:
                if len(sources) == 1:
                    raise
                found.faults.append(str(fault))
        order = {task: number for number, task in enumerate(self.tasks)}
        found.questions.sort(key=lambda question: order[question.task])  # stable: rows stay in the order of their files
        return found

    def rules(self, question: Question, text: str) -> Verdict:
        """By rules.py: yes and no, a list of them and an order must be equal, dictionaries equal as sets."""
        answer = rules.final_answer(text)
        if question.task in YES_NO:
            word = rules.yes_or_no(answer)
            return Verdict(word == question.answer.strip(), word)
        if question.task == "Hot_Videos_Aggregation":
            words = rules.yes_no_list(answer)
            return Verdict(words == _gold_list(question.answer), None if words is None else "_".join(words))
        if question.task == "Collection_Order":
            order = rules.order_of(answer)
            right = rules.order_of(rules.final_answer(question.answer))
            return Verdict(order is not None and order == right, None if order is None else str([*order]))
        properties = rules.properties_of(answer)
        right_properties = rules.properties_of(rules.final_answer(question.answer))
        shown = None if properties is None else str({name: sorted(values) for name, values in properties.items()})
        return Verdict(properties is not None and properties == right_properties, shown)

    def reference(self, question: Question, text: str) -> Verdict | JudgeRequest:
        """What the published evaluator says, or what it asks its judge."""
        answer = post_process.without_thinking(post_process.post_process(text))
        if question.task in YES_NO:
            word = post_process.yes_or_no(answer)
            verdict = Verdict(word == question.answer, word)
            if word is not None:
                return verdict
            return JudgeRequest(_ask_yes_no(answer), verdict, lambda reply: post_process.yes_or_no(reply) is not None)
        if question.task == "Hot_Videos_Aggregation":
            return JudgeRequest(_ask_list(answer))
        return JudgeRequest(_ask_whether_right(question.answer, answer))

    def judged(self, question: Question, reply: str) -> Verdict:
        """By the judge's word: yes or no, the list that it has extracted, or whether the answer is right."""
        if question.task in YES_NO:
            word = post_process.yes_or_no(reply)
            return Verdict(word == question.answer, word, reply)
        if question.task == "Hot_Videos_Aggregation":
            words = post_process.listed(reply)
            return Verdict(words == question.answer.split("_"), None if words is None else "_".join(words), reply)
        word = next((word for word in (RIGHT, WRONG) if word in reply), None)
        return Verdict(word == RIGHT, word, reply)


def task_of(name: str) -> str | None:
    """The task of a table, or of a name in predictions; None where there is none of that name."""
    stem = name.strip().lower()
    return next((task for task, names in TASKS.items() if stem in (task.lower(), *map(str.lower, names))), None)


def _checked(task: str, answer: str, question: str, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is shown and asked. Raises ValueError for an answer that the task cannot have."""
    if task in YES_NO and answer.strip() not in ("是", "否"):
        raise ValueError(f"the answer is {answer!r}, and 是 or 否 is needed")
    if task == "Hot_Videos_Aggregation" and not re.fullmatch("[是否](_[是否])*", answer.strip()):
        raise ValueError(f"the answer is {answer!r}, and 是 and 否 joined by _ are needed")
    if not answer.strip():
        raise ValueError("the answer is empty")
    return [*parts, {"type": "text", "text": question + (SUFFIX if task in YES_NO else "")}]


def _gold_list(answer: str) -> list[str]:
    return answer.strip().split("_")


def _ask_yes_no(answer: str) -> str:
    return f"下面是一段对是非题的回答。请判断它的结论是“是”还是“否”，只输出一个字；如果无法判断，输出 Unknown。\n回答：{answer}"


def _ask_list(answer: str) -> str:
    return (
        "下面是一段回答，其结论是若干个“是”或“否”。请忽略分析过程，按顺序输出最终的列表，格式为[是，否...是]，"
        f"不要输出其他内容。\n回答：{answer}"
    )


def _ask_whether_right(gold: str, answer: str) -> str:
    return (
        "下面给出标准答案和一段回答。请忽略回答中的分析过程，只比较结论是否一致。"
        f"一致则输出“{RIGHT}”，否则输出“{WRONG}”。\n标准答案：{gold}\n回答：{answer}"
    )
