"""Refusals provoked on purpose, and what kvtools can refuse at all.

A case is a line as a user types it, `kvtools …`, with `< FILE`, `> FILE`, `NAME=VALUE` and `mpiexec -n 2` where they matter;
or an expression that calls a library function. Each becomes one line: `case => exit code, message`.
"""

import ast
import importlib
import os
import re
import shlex
import signal
import sys
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from unittest import mock

import calls
from same_outputs import redirected

PROPER_NAMES = {"SLURM"}
ROOT = Path(__file__).resolve().parents[2]


def lines_of(cases):
    """The golden line of each case, run in this folder."""
    for case in cases:
        yield typed(case) if re.match(r"([A-Z_]+=\S* |mpiexec -n \d+ )*kvtools ", case) else called(case)


def typed(line):
    """The golden line of a command line."""
    words = shlex.split(line)
    files = {"<": os.devnull, ">": "stdout.bin"}
    for mark in files:
        if mark in words:
            files[mark] = words.pop(words.index(mark) + 1)
            words.remove(mark)
    n_ranks, environment = 1, {}
    while words[0] != "kvtools":
        word = words.pop(0)
        if word == "mpiexec":
            n_ranks = int(words.pop(1))
        elif "=" in word:
            name, _, environment[name] = word.partition("=")
    code = run(words[1:], files["<"], files[">"], environment, n_ranks)
    text = Path("stderr.txt").read_text()
    return f"{line} => {code}, {normal(text)}"


def called(text):
    """The golden line of an expression in which each `kvtools.…` is imported."""
    names = {name: getattr(calls, name) for name in calls.__all__}
    for path in re.findall(r"\bkvtools(?:\.[a-z]\w*)+", text):
        words = path.split(".")
        with suppress(ModuleNotFoundError):  # the last words are of a function, no module
            for n in range(2, len(words) + 1):
                importlib.import_module(".".join(words[:n]))
    try:
        value = eval(text, names | {"kvtools": sys.modules["kvtools"]})
    except Exception as error:  # noqa: BLE001 whatever it raises is what is looked at
        return f"{text} => {type(error).__name__}, {normal(str(error))}"
    return f"{text} => 0, {value}"


def run(words, src=os.devnull, dst="stdout.bin", environment=(), n_ranks=1):
    """The exit code of one command in this process; what it says goes to stderr.txt. TERMINAL is one, CLOSED is no stdin."""
    from kvtools import cli, world

    before = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    with ExitStack() as stack:
        stack.enter_context(redirected(0, src))
        stack.enter_context(redirected(1, dst))
        stack.enter_context(redirected(2, "stderr.txt"))
        if n_ranks > 1:  # what rank 0 of several does before they meet
            ranks = world.World()
            ranks.size = n_ranks
            stack.enter_context(mock.patch.object(world.World, "open", return_value=ranks))
        os.environ.update(environment)
        try:
            return cli.run(words)
        finally:
            os.environ.clear()
            os.environ.update(before)
            world._stop_signals.clear()
            for number, handler in handlers.items():
                signal.signal(number, handler)


def normal(text):
    """A message on one line, without what differs from machine to machine."""
    text = " / ".join(re.sub(r"^(\[r\d/\d\] )?kvtools[a-z -]*: ", "", line) for line in text.strip().splitlines())
    text = re.sub(r"\bfit [0-9a-f]{24}\b", "fit DIGEST", text)  # of floats, whose last bits differ
    return re.sub(r"/tmp/tmp\w+|/dev/fd/\d+", "TEMPORARY", text.replace(os.getcwd() + "/", "").replace(os.getcwd(), "."))


@cache
def fault_classes():
    """Names of what kvtools raises: exceptions of Python, and the classes of kvtools that are derived from them."""
    found = {"ValueError", "EOFError", "Exception"}
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "kvtools").rglob("*.py"))]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := {node.name for node in classes if {last_word(base) for base in node.bases} & found} - found:
        found |= more
    return found


def last_word(node):
    """`Unfit` of `sample.Unfit`."""
    return ast.unparse(node).rpartition(".")[2]


def refusals():
    """(file, pattern with {} for what varies) of each message that kvtools can refuse with, in the order of the code."""
    for path in sorted((ROOT / "kvtools").rglob("*.py")):
        if path.parent.name == "transformers_code":  # never run here: transformers runs it out of a model's directory
            continue
        name = path.relative_to(ROOT / "kvtools").as_posix()
        tree = ast.parse(path.read_text())
        variables = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                variables.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(tree):
            for message in messages(node, variables):
                if len(re.sub(r"\{\}|\W", "", message)) >= 6:  # less is a frame around a message raised elsewhere
                    yield name, message


def messages(node, variables):
    """The messages of a raise statement, or of the rules of refuse_if."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and last_word(node.exc.func) in fault_classes():
        for argument in node.exc.args[:1]:
            yield from texts_or_values(argument, variables)
    elif isinstance(node, ast.Call) and last_word(node.func) == "refuse_if":
        for rule in node.args:
            for part in ast.walk(rule):
                if isinstance(part, ast.Tuple) and len(part.elts) == 2:
                    yield from texts_or_values(part.elts[1], variables)
                    break


def texts_or_values(node, variables):
    """The texts of an expression, or of each value that its variable is given in that file."""
    for value in variables.get(node.id, []) if isinstance(node, ast.Name) else [node]:
        yield from texts(value)


def texts(node):
    """The texts that an expression can have, {} for each part that is not constant."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in [*texts(node.left)] or ["{}"]:
            for right in [*texts(node.right)] or ["{}"]:
                yield left + right


def unprovoked(golden):
    """(file, message) of each refusal that no line of the golden file shows."""
    text = "\n".join(line.partition(" => ")[2] for line in golden.splitlines())
    for name, message in dict.fromkeys(refusals()):
        parts = [re.escape(" ".join(part.split())) for part in re.split(r"\{\}", message)]
        if not re.search(".*?".join(part for part in parts if part), text):
            yield name, message


def style_faults(line):
    """What is wrong with the sentences of a golden line, one text for each fault."""
    case, _, rest = line.partition(" => ")
    code, _, message = rest.partition(", ")
    if re.search(r"\bexpected\b(?!.*\()", message):
        yield f"{case}: says what is expected, not what is wrong and what to do: {message}"
    if "!" in message or "please" in message.lower() or "invalid input" in message:
        yield f"{case}: {message}"
    if code.isdecimal() and not message.endswith("."):
        yield f"{case}: does not end with a full stop: {message}"
    if code == "ValueError" and re.search(r"[^.]\.$", message):
        yield f"{case}: the command adds the full stop: {message}"
    first = re.match(r"[A-Z][a-z]+\b(?![.:/-])", message)
    if first and first[0] not in PROPER_NAMES:
        yield f"{case}: begins with a capital: {message}"


def lacks_advice(line):
    """Whether a golden line of these exit codes has fewer than two sentences: what is wrong, and what to do."""
    code, _, message = line.partition(" => ")[2].partition(", ")
    return code in ("2", "65", "66", "73") and len(re.findall(r"\.(?= |$)", message)) < 2
