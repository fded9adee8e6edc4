"""Texts at which an answer ends, wherever their letters fall among tokens. Not here: the tokens that end a turn."""

from collections.abc import Callable, Sequence

from kvtools.keye.data.chat_template import ChatTemplate

_SPARE = 8  # tokens: no letter has more


class StopText:
    """Ends answers at the first of some texts; `cut` gives an answer's text without it, and `shown` what of it is safe to show
    while it grows."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str]) -> None:
        self._template, self._stops = template, [stop for stop in stops if stop]
        self._n_tokens = max((len(stop.encode()) for stop in self._stops), default=0) + _SPARE

    def is_over(self, tokens: Sequence[int]) -> bool:
        """Whether the last of an answer's tokens completes one of the texts."""
        text = self._template.decode(tokens[-self._n_tokens :], skip_control=True) if self._stops else ""
        return any(stop in text for stop in self._stops)

    def cut(self, text: str) -> str:
        """The text before the first stop text."""
        return text[: min([begin for stop in self._stops if (begin := text.find(stop)) >= 0], default=len(text))]

    def shown(self, text: str) -> str:
        """The text without what may yet become a stop text."""
        text = self.cut(text)
        held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return text[: len(text) - held]


class HeldText:
    """Passes text on as it grows, but for what may yet become a stop text."""

    def __init__(self, stops: StopText, on_text: Callable[[str], None]) -> None:
        self._stops, self._on_text = stops, on_text
        self._text, self._n_shown = "", 0

    def add(self, text: str) -> None:
        """Take more text."""
        self._text += text
        self._show(self._stops.shown(self._text))

    def end(self) -> None:
        """Show what was held back."""
        self._show(self._stops.cut(self._text))

    def _show(self, text: str) -> None:
        if len(text) > self._n_shown:
            self._on_text(text[self._n_shown :])
            self._n_shown = len(text)
