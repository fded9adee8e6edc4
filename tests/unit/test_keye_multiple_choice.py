"""Which option a model chooses: that of the next token's logits, whatever else is asked at the same time."""

from dataclasses import replace

import pytest
import torch
from small_keye import CONFIG
from small_media import clip_of, write_stream

from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.media import Media
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.keye import Keye
from kvtools.keye.quiz.multiple_choice import options_of, predict

CHAT = ChatTemplate.open(None)


def question(number, form, n_choices, clip):
    content = [{"type": "video", "video": clip}, {"type": "text", "text": f"Question {number}?"}]
    return {
        "id": f"q{number}",
        "mode": None,
        "messages": [{"role": "user", "content": content}],
        "form": form,
        "choices": ["x"] * n_choices,
    }


@pytest.fixture
def media(tmp_path):
    with Media([str(write_stream(tmp_path / "c.kvs", {"a": clip_of([10, 90]), "b": clip_of([200, 10, 30])}))]) as found:
        yield found


@torch.no_grad()
def test_the_choice_is_the_likeliest_of_the_options_first_tokens(media):
    asked = [question(n, ("choice", "check")[n % 2], 2 + n % 3, "ab"[n % 2]) for n in range(10)]
    torch.manual_seed(3)
    language = replace(CONFIG.language, vocabulary=CHAT.tokenizer.size)
    arch = replace(CONFIG, language=language, image_token=CHAT.image_token, video_token=CHAT.video_token)
    keye = Keye(arch).eval()
    processor = Processor.for_model(arch, CHAT, media)
    together = list(predict(keye, processor, asked))
    assert together == [each for one in asked for each in predict(keye, processor, [one])]
    assert len(set(together)) > 1
    for one, said in zip(asked, together, strict=True):
        alone = processor.prompt(one)
        tokens, positions = torch.from_numpy(alone.tokens).long(), torch.from_numpy(alone.positions)
        seen = keye.encode_images(torch.tensor(alone.visuals[0].pixels_P3HW), [alone.visuals[0].grid.tolist()])
        logits = keye.logits(keye.hidden(tokens, positions, [0], seen)[-1])
        assert said == max(options_of(one), key=lambda word: float(logits[CHAT.tokenizer.encode(word, ())[0]]))


def test_an_open_question_has_no_options():
    with pytest.raises(ValueError, match="^the form is 'open', and only questions of the forms choice and check have options$"):
        options_of({"form": "open", "choices": []})
