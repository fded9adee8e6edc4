"""A step of Keye-VL: which tokens carry loss, what is frozen, what it costs, and how it is cut up, which changes nothing."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_keye import CONFIG
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kvtools.artifact.files import Sink, open_source
from kvtools.artifact.stream import Head, Writer
from kvtools.artifact.stream_index import Index
from kvtools.errors import Corrupt
from kvtools.keye.data.augment import Augment, mirrored, upended
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.dataloader import ConversationLoader, PackedRowLoader
from kvtools.keye.data.media import Unreadable
from kvtools.keye.data.packing import conversation_indices, to_record
from kvtools.keye.data.processor import Processor
from kvtools.keye.model.config import TextConfig
from kvtools.keye.model.flops import RowShape, pair_flops, row_flops
from kvtools.keye.model.inputs import Visual
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.objectives import NextToken, SigmoidContrastive
from kvtools.keye.run.recipe import TrainingRecipe
from kvtools.keye.run.setup import InitialModel, require_row_fits
from kvtools.keye.run.stages import PARTS, STAGES
from kvtools.keye.run.training_data import mix
from kvtools.train.durations import EpochLength
from kvtools.train.loop import Plan, Trainer
from kvtools.train.resume import train_state
from kvtools.world import World

CHAT = ChatTemplate.open(None)
VOCABULARY = -(-CHAT.size // 64) * 64
SMALL = replace(
    CONFIG, language=replace(CONFIG.language, vocabulary=VOCABULARY), image_token=CHAT.image_token, video_token=CHAT.video_token
)
N = 10


class Shelf:
    """Clips by number, some of which may be lost; stands where Media does."""

    def __init__(self, *lost):
        self.skipped, self.n_fetched = set(lost), 0

    def fetch(self, item):
        self.n_fetched += 1
        name = item[item["type"]]
        if name in self.skipped:
            raise Unreadable(name, "torn")
        number = int(name)
        grid = [(2, 2, 4), (3, 2, 2), (1, 4, 4)][number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (np.prod(grid), 3, 14, 14), dtype=np.uint8)
        return Visual(pixels, np.array(grid, np.int32), np.arange(grid[0]) / 2, is_video=True)


def talk(number, answer=None, *, clips=1):
    shown = [{"type": "video", "video": str(number + 10 * k)} for k in range(clips)]
    asked = [*shown, {"type": "text", "text": f"What is {number}?"}]
    said = [{"type": "text", "text": answer or f"It is {'no. ' * (number % 4)}{number}."}]
    return {"id": f"t{number}", "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def of_size(rank, size):
    made = World()
    made.rank, made.size = rank, size
    return made


def loader_of(conversations=None, *, shelf=None, length=256, **named):
    return ConversationLoader(
        conversations or [talk(n) for n in range(N)], Processor(CHAT, shelf or Shelf()), length=length, **named
    )


def task_of(stage="multitask", source=None, *, world=None, seed=0, **named):
    torch.manual_seed(3)
    given = {
        "batch_tokens": 512, "world": world or World(), "device": "cpu", "seed": seed, "augment": Augment(), **named,
    }  # fmt: skip
    source = source or loader_of()
    if STAGES[stage].is_contrastive:
        model = Siglip(SMALL.vision, TextConfig(24, 40, 1, 2, VOCABULARY, positions=16))
        return SigmoidContrastive(model, source, SMALL, STAGES[stage], **given)
    return NextToken(Keye(SMALL), source, SMALL, STAGES[stage], end_token=CHAT.stop_tokens[0], **given)


def train(task, n_steps=2, **named):
    plan = Plan(epochs=n_steps, n_steps=n_steps, warmup=0, lr=1e-2, **named)
    try:
        return list(Trainer(task, plan, train_state(None, {}), World()).run(stop=False))
    finally:
        task.close()


def weights(task):
    return {name: x.detach().clone() for name, x in task.model.state_dict().items()}


# ── which tokens carry loss ──────────────────────────────────────────────────────────────────────────────────────────────
def rows_of(source, epoch=0):
    return [source.build(plan) for plan in source.epoch(epoch)]


def slow_loss(model, row):
    """Cross-entropy in float64 of every token that the assistant says, and no other; how many they are; and how many are right
    but for the ends of turns."""
    model = model.double()
    visual = None if row.pixels is None else model.encode_images(torch.from_numpy(row.pixels).double(), row.grid.tolist())
    tokens = torch.from_numpy(row.tokens.astype(np.int64))
    hidden = model.hidden(tokens, torch.from_numpy(row.positions), row.segments.tolist(), visual)
    shares = (hidden @ model.output_VD.T).log_softmax(1)
    total, n_right, n = 0.0, 0, 0
    said = CHAT.tokenizer.ids["<|im_end|>"]
    for begin, end in zip(row.segments.tolist(), [*row.segments[1:].tolist(), len(row)], strict=True):
        words = CHAT.decode(row.tokens[begin:end])
        # the assistant's words, found as text: from its turn's beginning to the end of the turn
        answer = words.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
        n_answer = len(CHAT.tokenizer.encode(answer, ())) + 1
        last = begin + max(np.flatnonzero(row.tokens[begin:end] == said))
        for position in range(last - n_answer + 1, last + 1):
            total -= float(shares[position - 1, row.tokens[position]].detach())
            n_right += int(position < last and shares[position - 1].argmax() == int(row.tokens[position]))
            n += 1
    model.float()
    return total, n_right, n


def test_the_loss_is_that_of_the_answers_and_their_ends_alone():
    task = task_of()
    for row in rows_of(task.loader):
        total, right, count, n_counted = task.row_loss(row)
        wanted, n_right, n = slow_loss(task.model, row)
        assert (count, float(right), n_counted) == (n, n_right, n - len(row.keys))
        # float32 sums over a few dozen tokens of about 6 nats each
        assert total.item() == pytest.approx(wanted, rel=1e-5)


def test_what_is_shown_and_asked_carries_no_loss():
    task = task_of()
    row = rows_of(task.loader)[0]
    is_said = row.targets == 1
    assert not np.isin(row.tokens[is_said], (CHAT.image_token, CHAT.video_token)).any()
    logged = CHAT.decode(row.tokens[is_said]).split("<|im_end|>")[:-1]
    assert logged == [talk(int(key[1:]))["messages"][1]["content"][0]["text"] for key in row.keys]


def test_rows_packed_give_the_loss_of_conversations_alone():
    task = task_of()
    packed = [task.row_loss(row) for row in rows_of(task.loader)]
    alone = [task.row_loss(row) for n in range(N) for row in rows_of(loader_of([talk(n)]))]
    assert len(packed) < len(alone) == N
    assert sum(x[2] for x in packed) == sum(x[2] for x in alone)
    assert sum(x[0] for x in packed).item() == pytest.approx(sum(x[0] for x in alone).item(), rel=1e-5)


def test_a_conversation_of_words_only_trains_too_and_leaves_a_projector_as_it_is():
    words = [{"id": f"w{n}", "messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": f"It{n}."}]}
             for n in range(4)]  # fmt: skip
    task = task_of("alignment", ConversationLoader(words, Processor(CHAT), length=256))
    before = weights(task)
    steps = train(task, 2, weight_decay=0.0)
    assert all(step.metrics["grad_norm"] == 0 for step in steps)
    assert all(torch.equal(x, before[name]) for name, x in weights(task).items())
    mixed = task_of("alignment", loader_of([*words, *[talk(n) for n in range(4)]]))
    assert train(mixed, 1)[0].metrics["grad_norm"] > 0


# ── what is frozen ───────────────────────────────────────────────────────────────────────────────────────────────────────
LEARNS = {"alignment": {"projector"}, **dict.fromkeys(("multitask", "annealing", "sft", "cold-start"), set(PARTS))}


@pytest.mark.parametrize("stage", LEARNS)
def test_what_is_frozen_does_not_change_by_a_bit(stage):
    task = task_of(stage)
    before = weights(task)
    train(task)
    changed = Counter()
    for name, parameter in task.model.named_parameters():
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "decoder")
        is_learning = part in LEARNS[stage]
        assert parameter.requires_grad is is_learning, name
        is_other = not torch.equal(parameter, before[name])
        assert is_learning or not is_other, name
        changed[part] += is_other
    assert {part for part, n in changed.items() if n} == LEARNS[stage]


def test_matching_teaches_both_towers_and_its_temperature():
    task = task_of("matching")
    before = weights(task)
    train(task)
    for name, parameter in task.model.named_parameters():
        if "k_proj.bias" not in name and "position_embedding" not in name:  # a key's bias changes no share
            assert not torch.equal(parameter, before[name]), name


def test_matching_counts_equal_texts_as_belonging_to_each_others_pictures():
    source = loader_of([talk(n, answer="the same" if n < 2 else f"no. {n}") for n in range(4)], length=1024)
    task = task_of("matching", source)
    (row,) = rows_of(source)
    total, right, count, _ = task.row_loss(row)
    with torch.no_grad():
        images = task.model.encode_images(torch.from_numpy(row.pixels), row.grid.tolist()).double()
        texts = [row.tokens[row.targets == 1]]
        ends = np.flatnonzero(texts[0] == CHAT.tokenizer.ids["<|im_end|>"]) + 1
        texts = np.split(texts[0], ends)[:-1]
        words = torch.cat([task.model.encode_texts(torch.from_numpy(t.astype(np.int64)), [0]) for t in texts]).double()
        logits = images @ words.T * task.model.logit_scale.double().exp() + task.model.logit_bias.double()
    wanted = 0.0
    for i in range(4):
        for j in range(4):
            is_pair = texts[i].tobytes() == texts[j].tobytes()
            wanted -= float(torch.nn.functional.logsigmoid(logits[i, j] if is_pair else -logits[i, j]))
    assert sum(a.tobytes() == b.tobytes() for a in texts for b in texts) == 6
    assert count == 4
    assert total.item() == pytest.approx(wanted, rel=1e-4)
    best = logits.argmax(1).tolist()
    assert float(right) == sum(texts[i].tobytes() == texts[best[i]].tobytes() for i in range(4))


def test_matching_cuts_long_texts_and_looks_at_the_first_clip_of_each():
    source = loader_of([talk(n, answer=f"{n}" * 40, clips=2) for n in range(2)], length=1024)
    task = task_of("matching", source)
    seen = []
    task.model.encode_texts = lambda tokens, starts: seen.append((tokens, starts)) or torch.ones(len(starts), 24)
    images = []
    first = type(task.model).encode_images
    task.model.encode_images = lambda *given: images.append(first(task.model, *given)) or images[-1]
    (row,) = rows_of(source)
    _, _, count, _ = task.row_loss(row)
    tokens, starts = seen[0]
    assert (count, starts, len(tokens), len(images[0])) == (2, [0, 16], 32, 4)
    assert tokens[15] == tokens[31] == CHAT.tokenizer.ids["<|im_end|>"]


# ── how a step is cut up ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_pieces_and_ranks_share_the_rows_of_a_step_and_lose_none():
    alone = task_of(source=loader_of(length=128))
    for rows in alone.epoch(0):
        wanted = sorted(plan.indices for plan in rows)
        for size, n in ((1, 1), (1, 3), (1, 50), (2, 2), (2, 3), (4, 4), (4, 9)):
            given = []
            for rank in range(size):
                task = task_of(source=loader_of(length=128), world=of_size(rank, size))
                pieces = task.microbatches(rows, n, slice(None))
                given += [plan.indices for piece in pieces[rank::size] for plan in piece]
                task.close()
            assert sorted(given) == wanted, (size, n)
    alone.close()


def test_ranks_get_nearly_equal_work_and_are_logged_how_nearly():
    long, short = [talk(n, answer="x" * 150) for n in range(4)], [talk(n) for n in range(4, 24)]
    tasks = [task_of(source=loader_of([*long, *short], length=256), batch_tokens=10_000, world=of_size(r, 3)) for r in range(3)]
    (rows,) = list(tasks[0].epoch(0))
    own = [(task, task.microbatches(rows, 5, slice(r, None, 3))[r::3]) for r, task in enumerate(tasks)]
    work = [sum(task.flops(plan) for part in parts for plan in part) for task, parts in own]
    logged = tasks[1].after_step(World())
    assert logged["load_max_over_mean"] == pytest.approx(max(work) / np.mean(work))
    in_turn = [sum(tasks[0].flops(plan) for plan in rows[r::3]) for r in range(3)]
    assert logged["in_turn_max_over_mean"] == pytest.approx(max(in_turn) / np.mean(in_turn))
    assert logged["load_max_over_mean"] < 4 / 3  # Graham's bound on the largest share
    for task in tasks:
        task.close()


def test_a_run_taken_up_builds_only_what_is_still_to_be_learnt():
    shelf = Shelf()
    task = task_of(source=loader_of(shelf=shelf, length=128), batch_tokens=128)
    steps = list(task.epoch(0))
    n_measured = shelf.n_fetched
    assert (n_measured, len(steps) > 4) == (N, True), "looking at what comes costs each conversation one look"
    going = task.epoch(0)
    for _ in steps[:-1]:
        next(going)
    task.microbatches(next(going), 1, slice(None))
    task.close()
    assert shelf.n_fetched - n_measured <= sum(len(plan.indices) for plan in steps[-1])


# ── what became unreadable ───────────────────────────────────────────────────────────────────────────────────────────────
def test_a_clip_that_goes_between_two_looks_is_left_out_and_reported_once():
    shelf = Shelf()
    task = task_of(source=loader_of(shelf=shelf))
    assert task.n_steps() > 0
    shelf.skipped = {"3"}
    steps = train(task, 3 * task.n_steps(), save_every=0)
    assert all(np.isfinite(step.metrics["loss"]) for step in steps if step.metrics)
    assert (task.loader.skipped.counts, list(task.loader.lost_later.counts.values())) == ({}, [1])
    assert "t3: 3: torn" in task.loader.lost_later.lines()[0]


def test_a_step_of_which_nothing_is_left_changes_nothing():
    shelf = Shelf()
    task = task_of(source=loader_of([talk(1), talk(2)], shelf=shelf))
    before = weights(task)
    assert task.n_steps() == 1
    shelf.skipped = {"1", "2"}
    steps = train(task, 2)
    assert [sorted(step.metrics) for step in steps] == [["rate", "seconds", "tokens", "tokens_per_s"]] * 2
    assert all(torch.equal(x, before[name]) for name, x in weights(task).items())


# ── packed rows ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def packed(path, rows):
    with Writer(Sink(str(path)), Head("sequence")) as writer:
        for number, row in enumerate(rows):
            tensors, fields = to_record(row)
            writer.write(f"r{number}", tensors, **fields)
    return Index(open_source(str(path)), str(path))


def test_packed_rows_give_the_loss_of_the_conversations_they_are_of(tmp_path):
    source = loader_of()
    rows = rows_of(source)
    task = task_of(source=PackedRowLoader([packed(tmp_path / "rows.kvs", rows)]))
    logged = [task.row_loss(task.loader.build(plan)) for plan in task.loader.epoch(0)]
    live = [task.row_loss(row) for row in rows]
    totals = [float(sum(x[0].detach() for x in some)) for some in (logged, live)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    assert sorted(key for plan in task.loader.epoch(1) for key in plan.keys) == sorted(f"t{n}" for n in range(N))


def edited(row, **changed):
    def put(array, position, value):
        array = array.copy()
        array[position] = value
        return array

    return replace(row, **{name: put(getattr(row, name), *change) for name, change in changed.items()})


BAD_ROWS = {
    "an id beyond the vocabulary": (
        {"tokens": (5, 70_000)},
        "tokens are 10 to 70000, and the model's are 0 to 319. Pack the rows again, with the model's tokenizer.",
    ),
    "an id below 0": ({"tokens": (5, -1)}, "tokens are -1 to"),
    "a visual token too many": (
        {"tokens": (1, SMALL.video_token)},
        "5 tokens are the model's visual tokens 268 and 269, and 16 patches need one for 4 of them",
    ),
    "targets that are neither 0 nor 1": (
        {"targets": (5, 2)},
        "targets must be 0 or 1, and 0 for the first token of a conversation",
    ),
    "a target that begins a conversation": (
        {"targets": (0, 1)},
        "targets must be 0 or 1, and 0 for the first token of a conversation",
    ),
    "an odd grid": ({"grid": (slice(None), (2, 8, 1))}, "patches"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_packed_row_that_the_model_cannot_be_shown_is_named(tmp_path, what):
    change, words = BAD_ROWS[what]
    (row,) = rows_of(loader_of([talk(0)]))
    start = InitialModel(Keye(SMALL), SMALL, CHAT, None, [], "")
    source = PackedRowLoader(
        [packed(tmp_path / "rows.kvs", [row, edited(row, **change)])], check=lambda row: require_row_fits(row, start)
    )
    with pytest.raises(Corrupt, match="record 1: ") as found:
        list(source.epoch(0))
    assert words in str(found.value)


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────────
BIG = replace(
    SMALL,
    vision=replace(SMALL.vision, width=64, hidden=160, layers=3, heads=4, table_side=4),
    language=replace(SMALL.language, width=96, hidden=256, layers=3, heads=6, kv_heads=2),
)


@pytest.mark.parametrize("stage", ["multitask", "alignment"])
@pytest.mark.parametrize("joint", [True, False])
def test_flops_are_those_that_torch_counts(stage, joint):
    arch = replace(BIG, vision=replace(BIG.vision, joint=joint))
    clips = [{"type": "video", "video": "0"}, {"type": "text", "text": "How?"}]
    source = loader_of(
        [{"id": f"t{n}", "messages": [{"role": "user", "content": clips}, {"role": "assistant", "content": "so " * n}]}
         for n in (5, 9, 20, 30)],
        shelf=Reel(), length=4096,
    )  # fmt: skip
    task = NextToken(
        Keye(arch), source, arch, STAGES[stage], batch_tokens=4096, world=World(), device="cpu", seed=0, augment=Augment()
    )
    (plan,) = source.epoch(0)
    row = source.build(plan)
    # the plain kernel, whose products torch counts; it computes both halves of what is causal
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.row_loss(row)[0].backward()
    task.close()
    shape = arch.language
    causal = sum(2 * n * n * shape.heads * shape.head_dim * shape.layers for n in plan.lengths)
    wanted = task.flops(plan) + 3 * causal
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.03)


class Reel(Shelf):
    def fetch(self, item):
        pixels = np.zeros((6 * 6 * 8, 3, 14, 14), np.uint8)
        return Visual(pixels, np.array((6, 6, 8), np.int32), np.arange(6) / 2, is_video=True)


def test_flops_of_pairs_are_those_that_torch_counts():
    text = TextConfig(64, 160, 2, 4, VOCABULARY, positions=64)
    model = Siglip(BIG.vision, text)
    grids = [(6, 6, 8), (4, 6, 8)]
    pixels = torch.zeros(sum(int(np.prod(grid)) for grid in grids), 3, 14, 14, dtype=torch.uint8)
    tokens, starts = torch.randint(0, 200, (50,)), [0, 20]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(model.encode_images(pixels, grids), model.encode_texts(tokens, starts)).backward()
    assert counter.get_total_flops() == pytest.approx(pair_flops(BIG.vision, text, grids, 50), rel=0.05)


def test_a_frozen_tower_costs_its_forward_alone():
    flops = row_flops(BIG, RowShape([100, 50], [(2, 4, 4)], 30))
    everything = flops.training(STAGES["multitask"].trains)
    assert everything == 3 * flops.forward - flops.patches
    aligned = flops.training(STAGES["alignment"].trains)
    assert aligned == flops.patches + flops.tower + 3 * (flops.projector + flops.pairs) + 2 * (flops.decoder + flops.head)


# ── pictures that change ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_each_picture_belongs_to_its_conversation():
    source = loader_of([talk(0, clips=2), {**talk(1), "id": "t1"}, talk(2)], length=2048)
    (row,) = rows_of(source)
    begins = [int(key[1:]) for key in row.keys]
    assert conversation_indices(row, (SMALL.image_token, SMALL.video_token)) == [
        g for g, n in enumerate(begins) for _ in range(1 + (n == 0))
    ]


@pytest.mark.parametrize(("turned", "axis"), [(mirrored, 2), (upended, 1)])
def test_frames_are_turned_whole_and_twice_is_nothing(turned, axis):
    def cut(picture):
        return picture.reshape(2, 2, 14, 3, 14, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 14, 14)

    picture = np.random.default_rng(0).integers(0, 256, (2, 2 * 14, 3 * 14, 3), dtype=np.uint8)  # T, height, width
    assert np.array_equal(turned(cut(picture), (2, 2, 3)), cut(np.flip(picture, axis)))
    assert np.array_equal(turned(turned(cut(picture), (2, 2, 3)), (2, 2, 3)), cut(picture))


@pytest.mark.parametrize(("change", "turned"), [("flip", mirrored), ("upend", upended)])
def test_the_share_of_conversations_that_is_asked_for_is_turned(change, turned):
    (row,) = rows_of(loader_of([talk(n) for n in range(2)], length=2048))
    visual, ends = (SMALL.image_token, SMALL.video_token), [0, *np.cumsum(row.grid.astype(int).prod(1))]
    parts = [slice(*ends[n : n + 2]) for n in range(len(row.grid))]

    def is_turned(share, seed):
        changed = Augment(**{change: share})(row, visual, lambda _: np.random.default_rng(seed))
        before, after = row.pixels[parts[0]], changed.pixels[parts[0]]
        assert any(np.array_equal(after, x) for x in (before, turned(before, row.grid[0])))
        return not np.array_equal(after, before)

    assert all(is_turned(1.0, seed) for seed in range(20))
    assert not any(is_turned(0.0, seed) for seed in range(20))
    assert 60 < sum(is_turned(0.5, seed) for seed in range(200)) < 140  # four standard errors


def test_colours_are_exchanged_and_made_negative_alike_in_all_that_a_conversation_shows():
    (row,) = rows_of(loader_of([talk(0), talk(1)], length=2048))
    visual, pictures = (SMALL.image_token, SMALL.video_token), [0, *np.cumsum(row.grid.astype(int).prod(1))]
    whose, met = conversation_indices(row, visual), set()
    for seed in range(200):
        changed = Augment(recolour=1.0)(row, visual, lambda key, seed=seed: np.random.default_rng([seed, int(key[1:])]))
        found = {}
        for owner, part in zip(whose, map(slice, pictures, pictures[1:]), strict=False):
            before, after = row.pixels[part], changed.pixels[part]
            ways = [
                (order, signs)
                for order in itertools.permutations(range(3))
                for signs in itertools.product([False, True], repeat=3)
                if all(np.array_equal(after[:, c], 255 - before[:, k] if no else before[:, k])
                       for c, (k, no) in enumerate(zip(order, signs, strict=True)))
            ]  # fmt: skip
            assert ways, "no exchange gives this"
            found.setdefault(owner, set(ways)).intersection_update(ways)
        assert all(found.values()), "one conversation, one exchange"
        met |= set().union(*found.values())
    assert len(met) == 48


def test_chance_in_pictures_hangs_on_epoch_and_key_alone():
    def seen(epoch, seed=0, length=256):
        task = task_of(
            source=loader_of(length=length), seed=seed, augment=Augment(flip=0.5, jitter=0.3, upend=0.5, recolour=0.5)
        )
        task._epoch = epoch
        found = {}
        for plan in task.loader.epoch(0):
            row = task._row(plan)
            begin = 0
            for owner, grid in zip(conversation_indices(row, task._visual_tokens), row.grid, strict=True):
                found[row.keys[owner]] = row.pixels[begin : begin + int(grid.prod())].tobytes()
                begin += int(grid.prod())
        task.close()
        return found

    assert seen(0) == seen(0) == seen(0, length=512)
    assert all(x != y for x, y in zip(seen(0).values(), seen(1).values(), strict=True))
    assert seen(0) != seen(0, seed=1)
    plain = {f"t{n}": Shelf().fetch({"type": "video", "video": str(n)}).pixels_P3HW.tobytes() for n in range(N)}
    assert all(seen(0)[key] != plain[key] for key in plain)


def test_pictures_whose_words_would_be_wrong_of_others_stay_as_they_are():
    source = loader_of([{**talk(0), "as_is": True}, talk(1)], length=2048)
    (row,) = rows_of(source)
    visual = (SMALL.image_token, SMALL.video_token)
    changed = Augment(flip=1.0, jitter=0.3, upend=1.0, recolour=1.0)(row, visual, lambda _: np.random.default_rng(0))
    begin = 0
    for owner, grid in zip(conversation_indices(row, visual), row.grid, strict=True):
        part = slice(begin, begin := begin + int(grid.prod()))
        assert np.array_equal(changed.pixels[part], row.pixels[part]) == (row.keys[owner] == "t0")


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
def recipe(stage="multitask", steps="3ep", training=(), **named):
    given = {"size": "tiny", "architecture": [], "lr": None, "batch_tokens": 1000, "length": 100, "ratio": None, "seed": 0}
    return TrainingRecipe(stage=stage, steps=steps, training=[*training], **{**given, **named})


SLOWER = {"visual.": 0.1, "mlp_AR.": 0.1}


def test_durations_come_out_in_steps():
    lengths = EpochLength(40, 40_000)
    training = ["warmup=10%", "save=1ep", "patience=2ep", "tower=0.5"]
    plan = recipe(training=training).plan(lengths, SMALL, "float32")
    assert (plan.n_steps, plan.warmup, plan.save_every, plan.patience, plan.n_microbatches) == (120, 12, 40, 2, 10)
    assert plan.lr_factors == {"visual.": 0.5, "mlp_AR.": 0.1}
    assert recipe(steps="8e4tok").plan(lengths, SMALL, "float32").n_steps == 80
    unknown = EpochLength(1 << 40, (1 << 40) * 1000)
    assert recipe(steps="8e4tok").plan(unknown, SMALL, "float32").n_steps == 80
    assert not recipe(steps="8e4tok").counts_epochs


@pytest.mark.parametrize(("patience", "n_epochs"), [("0", 0), ("0ep", 0), ("2ep", 2), ("10", 1), ("60", 2), ("0.5ep", 1)])
def test_patience_is_at_least_an_epoch_where_there_is_any(patience, n_epochs):
    made = recipe(steps="500", training=[f"patience={patience}"])
    assert made.is_judged is (n_epochs > 0)
    assert made.counts_epochs or not n_epochs
    assert made.plan(EpochLength(40, 40_000), SMALL, "float32").patience == n_epochs


def test_a_stage_has_its_rate_and_wide_models_a_lower_one():
    wide = replace(SMALL, language=replace(SMALL.language, width=512), vision=replace(SMALL.vision, width=256))
    for stage, logged in STAGES.items():
        assert recipe(stage).lr_for(SMALL) == logged.lr
        assert recipe(stage).lr_for(wide) == logged.lr / (2 if logged.is_contrastive else 4)
        alone = stage in ("matching", "alignment")  # what is trained alone has the stage's own rate
        assert recipe(stage).plan(EpochLength(40, 40_000), SMALL, "float32").lr_factors == ({} if alone else SLOWER)
    assert recipe(lr=0.5).lr_for(wide) == 0.5


@pytest.mark.parametrize(
    ("parts", "ratio", "wanted"),
    [
        ([4, 2], None, "aaaabb"),
        ([4, 2], "1,1", "aaaabbbb"),
        ([4, 2], "2:1", "aaaabb"),
        ([4, 2], "1,3", "aaaa" + "b" * 12),
        ([4, 0], "1,1", "aaaa"),
    ],
)
def test_inputs_come_in_the_ratio_given_and_none_loses_any(parts, ratio, wanted):
    found = [[{"id": f"{name}{k}"} for k in range(n)] for name, n in zip("ab", parts, strict=True)]
    made = mix(found, ratio)
    assert "".join(each["id"][0] for each in made) == wanted
    assert {each["id"] for each in made} == {each["id"] for part in found for each in part}


@pytest.mark.parametrize("ratio", ["1", "1,2,3", "1,0", "1,x", "1,inf", "-1,2", "1,nan"])
def test_shares_that_cannot_be_meant_are_refused(ratio):
    with pytest.raises(ValueError, match=r"^the inputs are 2, and each needs one number above 0. Give them as 1,1$"):
        mix([[{}], [{}]], ratio)
