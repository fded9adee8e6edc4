"""A chat with a model: messages become a prompt, and the answer becomes text while it is generated.

Not here: the terminal (commands/chat.py), the template (data/chat_template.py), how tokens are drawn (model/generate.py).
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from kvtools.artifact import is_stream
from kvtools.artifact.files import open_source
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt, Missing, raising
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.checkpoint.adapters import open_model_weights
from kvtools.keye.checkpoint.weights import Weights
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.media import Media, Unreadable
from kvtools.keye.data.processor import Processor, require_patch_size
from kvtools.keye.model.generate import Answer, Insertion, generate
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.language import DecoderLayer
from kvtools.keye.model.vision import EncoderLayer
from kvtools.keye.model.visual_cache import VisualCache
from kvtools.keye.run.agentic import MAX_RUNS, CodeRunner
from kvtools.keye.run.limits import Limits
from kvtools.keye.run.stop_text import HeldText, StopText
from kvtools.keye.sandbox.session import Sandbox
from kvtools.progress import Ticker
from kvtools.train.loop import DTYPES
from kvtools.video.inputs import IMAGE_SUFFIXES

PICTURE = "[picture]"
_INCOMPLETE = "\ufffd"  # how a letter is decoded while some of its bytes are missing
_MAX_LETTER_TOKENS = 8  # no letter has more, so what is incomplete by then stays so


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are drawn. The defaults are those published with Keye-VL (generation_config.json). An answer ends before the
    first of the stop texts."""

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    max_new: int = 1024
    mode: str | None = None
    seed: int = 0
    repetition_penalty: float = 1.0
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer: its text, numbers of tokens of the answer, the prompt and its pictures and videos, and why it ended.

    n_tokens: those that were drawn. content: the answer as parts of a message, with the pictures that its code made. ended:
    "insertion" where code asked for more runs than it may have.
    """

    text: str
    n_tokens: int
    n_prompt: int
    n_visual: int
    seconds: float
    ended: Literal["stop", "length", "insertion"]
    content: tuple[dict[str, Any], ...] = ()
    n_runs: int = 0


class ChatSession:
    """A model that answers one question after another. Pictures and videos of the last question are not encoded again."""

    def __init__(
        self, model: Keye, template: ChatTemplate, media: Media, config: GenerationConfig,
        sandbox: Sandbox | None = None, max_runs: int = MAX_RUNS, *, max_prompt: int | None = None,
    ) -> None:  # fmt: skip
        """sandbox: where code in answers runs, at most max_runs times an answer; None: nowhere, it is text. max_prompt: tokens
        of a prompt, in which pictures and videos give way."""
        self._model, self._template, self._config = model, template, config
        self._processor = Processor.for_model(model.config, template, media, max_prompt=max_prompt)
        self._visual_cache = VisualCache(model)
        self._stops = StopText(template, config.stop_texts)
        self._runner = None if sandbox is None else CodeRunner(self._processor, sandbox, max_runs)

    def ask(
        self, messages: Sequence[Mapping[str, Any]], key: str, on_text: Callable[[str], None] = lambda _: None
    ) -> Reply:  # fmt: skip
        """The answer to the last message.

        key: the question's name; the answer is drawn from the seed and this key. on_text: called with the text as it comes.
        Raises Unreadable for a picture or video that cannot be read, ValueError where the model's numbers are not finite.
        """
        model, template, config = self._model, self._template, self._config
        begun = time.perf_counter()
        runner, decoder, stops = self._runner, StreamDecoder(template), self._stops
        held = HeldText(stops, on_text)
        conversation = {"id": key, "mode": config.mode, "messages": list(messages)}
        prompt = self._processor.prompt(conversation) if runner is None else runner.prompt(conversation)

        def on_token(_key: str, _number: int, token: int) -> None:
            if token not in template.stop_tokens:
                held.add(decoder.add(token))

        def insert(key: str, number: int, tokens: Sequence[int]) -> Insertion | None:
            assert runner is not None, "set below"
            insertion = runner.insert(key, number, tokens)
            if insertion is not None and not insertion.is_end:
                held.add(decoder.rest() + described(runner.outputs[key, number][-1]))
                decoder.restart()
            return insertion

        ((answer,),) = generate(
            model, [prompt], max_new_tokens=config.max_new, temperature=config.temperature, top_k=config.top_k,
            top_p=config.top_p, repetition_penalty=config.repetition_penalty, stop_tokens=template.stop_tokens,
            seed=config.seed, suppress_tokens=range(template.size, model.config.language.vocabulary), on_token=on_token,
            insert=None if runner is None else insert, is_over=stops.is_over, visual_cache=self._visual_cache,
        )  # fmt: skip
        held.add(decoder.rest())
        held.end()
        outputs = [] if runner is None else runner.outputs.get((key, 0), [])
        content = answer_content(template, answer, outputs)
        text = "".join(part["text"] if part["type"] == "text" else PICTURE for part in content)
        ended = answer.ended
        if stops.cut(text) != text:
            text, ended = stops.cut(text), "stop"
        n_visual = sum(visual.n_tokens for visual in prompt.visuals)
        seconds = time.perf_counter() - begun
        return Reply(text, len(answer.logprobs), len(prompt), n_visual, seconds, ended, content, len(outputs))


def answer_content(
    template: ChatTemplate, answer: Answer, outputs: Sequence[Sequence[dict[str, Any]]]
) -> tuple[dict[str, Any], ...]:  # fmt: skip
    """An answer as parts of a message: what was drawn, and the outputs of its code between."""
    parts: list[dict[str, Any]] = []
    end = 0
    for (begin, insertion), output in zip(answer.inserted, outputs, strict=False):
        drawn = template.decode(answer.tokens[end:begin], skip_control=True)
        parts += [
            {"type": "text", "text": f"{drawn}\n<sandbox_output>"},
            *output,
            {"type": "text", "text": "</sandbox_output>"},
        ]
        end = begin + len(insertion.tokens)
    return (*parts, {"type": "text", "text": template.decode(answer.text_tokens[end:], skip_control=True)})


def described(output: Sequence[Mapping[str, Any]]) -> str:
    """The output of code as text for people; PICTURE stands for a picture."""
    words = "".join(part["text"] if part["type"] == "text" else PICTURE for part in output)
    return f"\n<sandbox_output>{words}</sandbox_output>"


class StreamDecoder:
    """Decodes tokens as they come, whole letters at a time: the bytes of one letter may be in several tokens."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tokens: list[int] = []
        self._begin = self._end = 0  # of the tokens decoded last: later text is decoded together with them, as it would read

    def add(self, token: int) -> str:
        """The text that this token completes; it may be empty."""
        self._tokens.append(token)
        is_overdue = len(self._tokens) - self._end >= _MAX_LETTER_TOKENS
        return "" if self._new().endswith(_INCOMPLETE) and not is_overdue else self.rest()

    def restart(self) -> None:
        """Forget the tokens so far: others stand between them and the next."""
        self._tokens, self._begin, self._end = [], 0, 0

    def rest(self) -> str:
        """The text held back so far, complete or not."""
        new = self._new()
        self._begin, self._end = self._end, len(self._tokens)
        return new

    def _new(self) -> str:
        known = self._template.decode(self._tokens[self._begin : self._end], skip_control=True)
        return self._template.decode(self._tokens[self._begin :], skip_control=True)[len(known) :]


@contextmanager
def reading_progress(model: Keye, *, quiet: bool) -> Iterator[None]:
    """Shows the progress of reading a long prompt, a layer at a time; what comes after it, token by token, shows itself."""
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer | EncoderLayer)]
    ticker = Ticker(total=len(layers), unit="layers", label="reading the prompt", quiet=quiet)
    left: set[nn.Module] = set(layers)

    def on_layer(layer: nn.Module, *_: object) -> None:
        if layer in left:  # later tokens go through it again
            left.discard(layer)
            ticker()

    hooks = [layer.register_forward_hook(on_layer) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def open_model(src: str, tokenizer: str | None, *, device: str, dtype: str) -> tuple[Keye, ChatTemplate]:
    """The model of a bag, a Hugging Face directory or an adapter, and the template with its own tokenizer or another.

    Raises Missing for a file that is not there; Corrupt for damage, for a part of a Keye-VL, and for a tokenizer that does not
    fit the model.
    """
    return open_checkpoint(src, tokenizer, device=device, dtype=dtype)[:2]


def open_checkpoint(src: str, tokenizer: str | None, *, device: str, dtype: str) -> tuple[Keye, ChatTemplate, Weights]:
    """As `open_model`, and the weights that the model was built from, with all else that its artifact holds."""
    weights = open_model_weights(src)
    config = weights.format.config
    if config is None:
        raise Corrupt(f"{src}: this is a {weights.format.layout}, which cannot answer. Give a whole Keye-VL.")
    with raising(Corrupt, src, "Give another model."):
        require_patch_size(config.vision)
    template = ChatTemplate.open(tokenizer) if tokenizer is not None else ChatTemplate.of_model(src, weights.files)
    template.require_fits(config.language.vocabulary, config.image_token, config.video_token)
    model = checkpoint.build(weights, dtype=DTYPES[dtype])
    assert isinstance(model, Keye), "its format says so"
    return model.to(device), template, weights


def open_visuals(
    names: Sequence[str], limits: Limits, *, fps: float, n_frames: int | None
) -> tuple[Media, list[dict[str, Any]]]:
    """The media of these files, and their content parts: a picture, a video, a folder of frames, or all records of a stream.

    limits: of the model that will see them.

    Raises Missing for a file that is not there, Unreadable for one that cannot be read.
    """
    streams: list[str] = []
    parts: list[dict[str, Any]] = []
    frames = {} if n_frames is None else {"frames": n_frames}
    for name in names:
        if not os.path.exists(name):
            raise Missing(f"{name}: no such file. Put the question in quotes, after the files.")
        if os.path.isfile(name) and _is_stream(name):
            streams.append(name)
            parts += [{"type": "video", "video": key, **frames} for key in Index(open_source(name), name).keys]
        elif Path(name).suffix.lower() in IMAGE_SUFFIXES:
            parts.append({"type": "image", "image": name})
        else:
            parts.append({"type": "video", "video": name, **frames})
    media = Media(streams, budget=limits.budget, image_tokens=limits.picture, fps=fps)
    try:
        for part in parts:
            media.fetch(part)
    except Unreadable:
        media.close()
        raise
    return media, parts


def _is_stream(name: str) -> bool:
    with open_source(name) as file:
        return is_stream(file)
