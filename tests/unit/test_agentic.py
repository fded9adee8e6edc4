"""Code in answers: its output is read where it ends, and the tokens after it are those of a forward without a cache."""

import base64
import io
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_keye import CONFIG

from kvtools.artifact import open_artifact
from kvtools.artifact.files import Sink
from kvtools.artifact.stream import Head, Writer
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.conversations import normalise
from kvtools.keye.data.media import Media
from kvtools.keye.data.packing import collate
from kvtools.keye.data.processor import Processor
from kvtools.keye.model import generate as generation
from kvtools.keye.model.generate import generate, with_answer
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.log_probs import log_probabilities
from kvtools.keye.rl.grpo import GrpoTask, PolicyConfig
from kvtools.keye.rl.prompts import Prompt
from kvtools.keye.rl.records import KIND, from_stream, to_records
from kvtools.keye.rl.rewards import Rewards, Rule
from kvtools.keye.rl.rollouts import Sampler, SamplingPlan
from kvtools.keye.run.agentic import CodeRunner
from kvtools.keye.run.session import PICTURE, ChatSession, GenerationConfig
from kvtools.keye.sandbox.session import Sandbox
from kvtools.world import World

CROP = (
    "<think>Closer.\n<code>\n```python\nfrom PIL import Image\nimage = Image.open(image_path)\n"
    "path = '/mnt/data/part.png'\nimage.crop((0, 0, 56, 84)).save(path)\nprint(path)\n```\n</code>"
)
SUM = "And <code>\n```python\nprint(image.width + 1)\n```\n</code>"


@pytest.fixture(scope="module")
def template():
    return ChatTemplate.open(None)


@pytest.fixture(scope="module")
def keye(template):
    torch.manual_seed(0)
    language = replace(CONFIG.language, vocabulary=template.size)
    config = replace(CONFIG, language=language, image_token=template.image_token, video_token=template.video_token)
    return Keye(config).eval()


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png"), pixels


@pytest.fixture
def scripted(monkeypatch, template):
    """Answers draw these tokens, with their probabilities, and then what they would have drawn."""

    def script(*texts):
        waiting = [template.tokenizer.encode(text, ("<think>", "</think>")) for text in texts]
        drawn = generation.sample_tokens
        count = 0

        def sample(logits_BV, sampling, uniform_B, forbidden_F, seen=None):
            nonlocal count
            tokens = waiting[0][count : count + 1] if waiting else []
            count += 1
            if waiting and count == len(waiting[0]):
                waiting.pop(0)
                count = 0
            if not tokens:
                return drawn(logits_BV, sampling, uniform_B, forbidden_F, seen)
            tokens_B = torch.tensor(tokens * len(logits_BV))
            logprobs_B = logits_BV.log_softmax(1).gather(1, tokens_B[:, None])[:, 0]
            return generation.SampledTokens(tokens_B, logprobs_B, logprobs_B)

        monkeypatch.setattr(generation, "sample_tokens", sample)

    return script


def asked(name, words="What is there?"):
    content = [{"type": "image", "image": name}, {"type": "text", "text": words}]
    return {"id": "q", "mode": "agentic", "messages": [{"role": "user", "content": content}]}


def test_tokens_after_the_picture_are_those_of_a_full_forward(keye, template, sandbox, photo, scripted):
    name, pixels = photo
    scripted(CROP, SUM)
    with Media() as media:
        processor = Processor.for_model(keye.config, template, media)
        runner = CodeRunner(processor, sandbox)
        prompt = runner.prompt(asked(name))
        options = {"max_new_tokens": 320, "temperature": 0.0, "stop_tokens": template.stop_tokens, "n_answers": 2}
        (group,) = generate(keye, [prompt], insert=runner.insert, **options)
        for answer in group:
            assert len(answer.logprobs) == 320
            example = with_answer(prompt, answer)
            logprobs = log_probabilities(keye, collate([example])).detach().numpy()[example.targets == 1]
            np.testing.assert_allclose(logprobs, answer.logprobs, atol=2e-5)  # float32, 600 tokens
            ((first, second), (_, picture)) = [step for _, step in answer.inserted], prompt_and_picture(example)
            assert picture.grid.tolist() == [1, 6, 4]
            shown = picture.pixels_P3HW.reshape(6, 4, 3, 14, 14).transpose(0, 3, 1, 4, 2).reshape(84, 56, 3)
            assert np.array_equal(shown, pixels[:84, :56])
            assert template.decode(first.tokens, skip_control=True) == "\n<sandbox_output></sandbox_output>"
            assert template.decode(second.tokens) == "\n<sandbox_output>113</sandbox_output>"


def prompt_and_picture(example):
    assert len(example.visuals) == 2
    return example.visuals


def test_an_answer_reads_as_the_template_writes_it(keye, template, sandbox, photo, scripted):
    name, _ = photo
    scripted(CROP, SUM)
    with Media() as media:
        processor = Processor.for_model(keye.config, template, media)
        session = ChatSession(keye, template, media, GenerationConfig(0.0, max_new=320, mode="agentic"), sandbox)
        texts = []
        reply = session.ask(asked(name)["messages"], "q", texts.append)
        assert (reply.n_runs, reply.n_tokens, "".join(texts)) == (2, 320, reply.text)
        assert reply.text.startswith(f"{CROP}\n<sandbox_output>{PICTURE}</sandbox_output>And <code>")
        told = asked(name)
        told["messages"].append({"role": "assistant", "content": list(reply.content[:-1])})
        example = processor.example(told)
        runner = CodeRunner(processor, sandbox)
        scripted(CROP, SUM)
        prompt = runner.prompt(asked(name))
        options = {"max_new_tokens": 320, "temperature": 0.0, "stop_tokens": template.stop_tokens}
        ((answer,),) = generate(keye, [prompt], insert=runner.insert, **options)
        n = len(example) - 2  # less the end of the turn
        drawn = with_answer(prompt, answer)
        assert np.array_equal(example.tokens[:n], drawn.tokens[:n])
        assert np.array_equal(example.targets[:n], drawn.targets[:n])  # what the sandbox says is no target
        assert np.array_equal(example.positions[:, :n], drawn.positions[:, :n])


def test_failures_come_back_as_text_and_runs_are_counted(keye, template, sandbox, photo, scripted):
    name, _ = photo
    scripted("<code>import cv2</code>", "<code>1 / 0</code>", "<code>print(1)</code>")
    with Media() as media:
        session = ChatSession(keye, template, media, GenerationConfig(0.0, max_new=320, mode="agentic"), sandbox, 2)
        reply = session.ask(asked(name)["messages"], "q")
    assert reply.text == (
        "<code>import cv2</code>\n<sandbox_output>Error: the sandbox has no library cv2</sandbox_output>"
        "<code>1 / 0</code>\n<sandbox_output>Error: ZeroDivisionError: division by zero</sandbox_output><code>print(1)</code>"
    )
    assert (reply.ended, reply.n_runs) == ("insertion", 2)


def test_a_frame_of_a_data_url_and_a_path_in_the_question_are_found(keye, template, sandbox, photo, scripted):
    buffer = io.BytesIO()
    Image.open(photo[0]).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    scripted("<code>from PIL import Image\nprint(Image.open('/mnt/u/7.jpg').size, image_path)</code>")
    with Media() as media:
        session = ChatSession(keye, template, media, GenerationConfig(0.0, max_new=90, mode="agentic"), sandbox)
        reply = session.ask(asked(url, "Image path: /mnt/u/7.jpg. What is it?")["messages"], "q")
    assert "<sandbox_output>(112, 84) picture-0.png</sandbox_output>" in reply.text


def read_back(group, path):
    """The records of a group, written and read."""
    with Writer(Sink(str(path)), Head(KIND)) as writer:
        for key, data in to_records(group, 0):
            writer.write_pieces(key, [memoryview(data)])
    return [*from_stream(open_artifact(str(path)), "rollouts")]


def test_rollouts_of_agentic_prompts_run_their_code_and_learn_what_was_drawn(
    keye, template, sandbox, photo, scripted, tmp_path
):
    name, _ = photo
    scripted(CROP, SUM)
    prompts = [Prompt("q", asked(name)), Prompt("p", {**asked(name), "mode": "no_think"})]
    lengths = iter([1.0, 0.0, 1.0, 0.0])
    rewards = Rewards([(Rule("one", lambda _: next(lengths)), 1.0)])
    with Media() as media:
        processor = Processor.for_model(keye.config, template, media)
        sampler = Sampler(keye, processor, rewards, SamplingPlan(2, 320, overlong="keep"), sandbox)
        task = GrpoTask(
            keye, sampler, sampler, prompts, [], {}, PolicyConfig(), None, batch=2, chunk=4, row_tokens=4096,
            trains=frozenset({"decoder"}), world=World(), seed=0, in_dtype=nullcontext,
        )  # fmt: skip
        rows = task.microbatches(next(task.epoch(0)), 1, slice(None))
        losses = [task.loss(row) for row in rows]
    by_key = {group.prompt.key: group for groups in task._chunks for group in groups}
    assert by_key["q"].texts[0].startswith(f"{CROP}\n<sandbox_output>{PICTURE}</sandbox_output>And <code>")
    assert "<sandbox_output>" not in by_key["p"].texts[0], "its code is text"
    assert task.figures["runs"] == 1
    # what is written of it is read again with the picture that its code gave
    group = by_key["q"]
    record = read_back(group, tmp_path / "r.kvs")[0]
    whole = {
        **record.conversation,
        "messages": [*record.conversation["messages"], {"role": "assistant", "content": record.content}],
    }
    with Media() as media:
        example = Processor.for_model(keye.config, template, media).example(normalise(whole))
    begin, insertion = group.answers[0].inserted[0]  # what a random model draws after it is no text
    drawn = [*group.example.tokens, *group.answers[0].tokens[: begin + len(insertion.tokens)]]
    assert len(example.visuals) == len(group.example.visuals) + 1
    assert example.tokens[: len(drawn)].tolist() == drawn
    # the policy that learns is the one that drew, outputs of code and all
    assert sum(float(loss.logged["kl"]) for loss in losses) < 1e-6
    assert sum(loss.count for loss in losses) == 4
