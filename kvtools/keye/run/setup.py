"""What a training of Keye-VL starts from: a model of given or random weights, and the task of its stage.

A model may be assembled from parts: `--init siglip/ --init qwen3/` takes the tower of one and the decoder of the other, and
weights that no part brings are random. Stage 0 trains a SigLIP, whose tower later stages begin with. Not here: the data
(training_data.py), the loop (train/loop.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from kvtools.artifact.blob import bytes_of
from kvtools.artifact.history import Step
from kvtools.chance import seed_for
from kvtools.errors import Corrupt, raising
from kvtools.keye.checkpoint import weights as checkpoint
from kvtools.keye.checkpoint.adapters import is_adapter, open_model_weights
from kvtools.keye.checkpoint.weights import Weights
from kvtools.keye.data.augment import Augment
from kvtools.keye.data.chat_template import ChatTemplate
from kvtools.keye.data.dataloader import ConversationLoader, PackedRowLoader
from kvtools.keye.data.processor import Processor
from kvtools.keye.data.tokenizer import FILE as TOKENIZER
from kvtools.keye.model.config import SIZES, ModelConfig, TextConfig
from kvtools.keye.model.inputs import PackedRow
from kvtools.keye.model.keye import Keye
from kvtools.keye.model.lora import add_adapters
from kvtools.keye.model.siglip import Siglip
from kvtools.keye.run.objectives import Loader, NextToken, PackedRowTask, SigmoidContrastive
from kvtools.keye.run.recipe import TrainingRecipe
from kvtools.keye.run.training_data import TrainingData
from kvtools.train.durations import EpochLength
from kvtools.train.loop import DTYPES
from kvtools.world import World

_ROUND = 64  # vocabularies are rounded up to a multiple of it: products of even sizes are faster
_TEXT_POSITIONS = 64  # SigLIP's
_TOKENIZER_FILES = (  # that travel with a tokenizer
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class InitialModel:
    """A model to train, its template, and where its weights came from. `digest` is of the given weights and the tokenizer.

    like: the part whose unused tensors and small files go with the trained model. files: small files of the tokenizer.
    """

    model: Keye | Siglip
    config: ModelConfig
    template: ChatTemplate
    like: Weights | None
    histories: list[list[Step]]
    digest: str
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def base(self) -> Weights:
        """What adapters of the model are added to."""
        assert self.like is not None, "adapters are trained of a whole model that was given"
        return self.like

    @property
    def n_trained(self) -> str:
        """How many parameters are trained, as "1,000 of 2,000"."""
        counts = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        return f"{sum(n for n, is_trained in counts if is_trained):,} of {sum(n for n, _ in counts):,}"


def initial_model(
    recipe: TrainingRecipe, init: Sequence[str], tokenizer: str | None, device: str, dtype: str = "float32"
) -> InitialModel:  # fmt: skip
    """The model that a run starts from, on its device. dtype: of the training's products.

    Raises Corrupt for parts that do not fit one another, and where adapters are to be trained of less than a whole Keye-VL.
    """
    parts = [open_model_weights(src) for src in init]
    if recipe.adapters is not None and parts[0].format.config is None:
        raise Corrupt(f"{parts[0].name}: this is a part of a Keye-VL, and --lora adapts a whole one. Give a whole model.")
    if recipe.adapters is not None and is_adapter(parts[0].name):
        raise Corrupt(f"{parts[0].name}: this is an adapter itself. Make one model of it and its base with kvtools merge.")
    speaker = None if tokenizer is not None else _part_with_tokenizer(parts, is_contrastive=recipe.objective.is_contrastive)
    template = ChatTemplate.of_model(speaker.name, speaker.files) if speaker is not None else ChatTemplate.open(tokenizer)
    config = recipe.with_overrides(_base_config(parts, SIZES[recipe.size], template))
    if any(part.format.language is not None for part in parts):
        template.require_fits(config.language.vocabulary, config.image_token, config.video_token)
    torch.manual_seed(recipe.weights_seed)
    if recipe.objective.is_contrastive:
        model: Keye | Siglip = Siglip(config.vision, _text_config(parts, config, template))
    else:
        model = Keye(config)
    for part in parts:
        with raising(Corrupt, part.name, "Give models of one shape, or another --size or --architecture."):
            checkpoint.copy_shared_weights(model, part)
    model.float()
    if recipe.adapters is not None:
        assert isinstance(model, Keye), "other stages have no adapters"
        torch.manual_seed(seed_for(recipe.seed, "lora"))
        add_adapters(model, recipe.adapters, frozen_dtype=DTYPES[dtype])
    model.checkpointing = recipe.settings["checkpoint"]
    files = {name: data for name, data in (speaker.files if speaker is not None else {}).items() if name in _TOKENIZER_FILES}
    like = next((part for part in reversed(parts) if part.format.layout in ("keye", "siglip")), None)
    histories = [part.history for part in parts]
    digest = weights_digest(parts, template)
    return InitialModel(model.to(device), config, template, like, histories, digest, files)


def make_task(
    recipe: TrainingRecipe, start: InitialModel, data: TrainingData, world: World, device: str, *, is_sharded: bool = False
) -> PackedRowTask:
    """The task of a stage. is_sharded: whether each rank has a part of the model. Raises Corrupt where the data have nothing to
    learn."""
    processor = Processor.for_model(start.config, start.template, data.media)
    loader: Loader
    if data.packed:
        check = lambda row: require_row_fits(row, start)
        loader = PackedRowLoader(data.packed, seed=recipe.seed, check=check, media=data.row_media)
    else:
        loader = ConversationLoader(
            data.conversations, processor, length=recipe.length, window=recipe.settings["window"], seed=recipe.seed,
            truncates=recipe.settings["cut"], needs_visual=recipe.objective.needs_visuals,
        )  # fmt: skip
    data.watch(data.name, loader)
    held_out = None
    if data.held_out:
        held_out = ConversationLoader(
            data.held_out, processor, length=recipe.length, window=recipe.settings["window"],
            needs_visual=recipe.objective.needs_visuals,
        )  # fmt: skip
        data.watch("--valid", held_out)
    for name, rows in ((data.name, loader), *(() if held_out is None else (("--valid", held_out),))):
        _require_usable_rows(rows, name, recipe, data)
    options: dict[str, Any] = {
        "batch_tokens": recipe.batch_tokens,
        "world": world,
        "device": device,
        "seed": recipe.seed,
        "augment": Augment(**{change.name: recipe.settings[change.name] for change in fields(Augment)}),
        "held_out": held_out,
        "is_judged": recipe.is_judged,
        "is_sharded": is_sharded,
    }
    if isinstance(start.model, Siglip):
        return SigmoidContrastive(start.model, loader, start.config, recipe.objective, **options)
    end_token = start.template.stop_tokens[0]
    return NextToken(start.model, loader, start.config, recipe.objective, end_token=end_token, **options)


def _require_usable_rows(loader: Loader, name: str, recipe: TrainingRecipe, data: TrainingData) -> None:
    """Raise Corrupt where no row has anything that the stage learns, or is validated on. Measures rows up to the first."""
    needs_visuals = recipe.objective.needs_visuals
    if any(plan.n_targets and (len(plan.grid) or not needs_visuals) for plan in loader.epoch(0)):
        return
    names = (name, data.valid_name) if name == "--valid" else (name, *data.name.split(", "))
    lines = " ".join(f"{source}: {line}." for source, skipped in data.skipped if source in names for line in skipped.lines())
    shown = " with a picture or video" if needs_visuals else ""
    why = f"{name}: {f'nothing in it{shown} has an answer to learn' if len(loader) else 'it has no conversations'}."
    use = "validate on" if name == "--valid" else "learn"
    raise Corrupt(f"{lines or why} Nothing is left to {use}. Change --length, --media or the data.")


def epoch_length(recipe: TrainingRecipe, task: PackedRowTask) -> EpochLength:
    """The length of an epoch; where no option counts in epochs, an endless one, since to know it is to read all the data."""
    n_steps = task.n_steps() if recipe.counts_epochs else 1 << 40
    return EpochLength(n_steps, n_steps * recipe.batch_tokens)


def require_row_fits(row: PackedRow, start: InitialModel) -> None:
    """Raise ValueError for a packed row that the model cannot be trained on."""
    model, config = start.model, start.config
    vocabulary = config.language.vocabulary if isinstance(model, Keye) else model.text_model.config.vocabulary
    low, high = row.tokens.min(), row.tokens.max()
    if low < 0 or high >= vocabulary:
        raise ValueError(f"tokens are {low} to {high}, and the model's are 0 to {vocabulary - 1}")
    n_visual = int(np.isin(row.tokens, (config.image_token, config.video_token)).sum())
    n_patches = int(row.grid.astype(np.int64).prod(axis=1).sum())
    if n_visual * config.merge**2 != n_patches or (row.grid[:, 1:] % config.merge).any():
        raise ValueError(
            f"{n_visual} tokens are the model's visual tokens {config.image_token} and {config.video_token}, and {n_patches} "
            f"patches need one for {config.merge**2} of them"
        )
    if (row.targets > 1).any() or row.targets[row.segments].any():
        raise ValueError("targets must be 0 or 1, and 0 for the first token of a conversation")


def _part_with_tokenizer(parts: Sequence[Weights], *, is_contrastive: bool) -> Weights | None:
    """The part whose tokenizer is taken: the one that brings the decoder or text tower, or any that has one; None: bytes."""
    texts = [part for part in reversed(parts) if (part.format.text if is_contrastive else part.format.language) is not None]
    return next(iter([*texts, *(part for part in reversed(parts) if TOKENIZER in part.files)]), None)


def _base_config(parts: Sequence[Weights], config: ModelConfig, template: ChatTemplate) -> ModelConfig:
    """The config of a size, with what the parts bring, and the tokens of the tokenizer where none brings a decoder."""
    language = replace(config.language, vocabulary=_vocabulary(template))
    base = replace(config, language=language, image_token=template.image_token, video_token=template.video_token)
    for part in parts:
        shapes = part.format
        if shapes.config is not None:
            base = shapes.config
        elif shapes.language is not None:
            base = replace(base, language=shapes.language)
        elif shapes.vision is not None:
            # a published SigLIP knows no rotations; Keye-VL adds them to it (spec/keye.md 3). One trained here has a recipe
            is_published = bool(part.huggingface) and not part.recipe
            base = replace(base, vision=replace(shapes.vision, rope=True) if is_published else shapes.vision)
    return base


def _text_config(parts: Sequence[Weights], config: ModelConfig, template: ChatTemplate) -> TextConfig:
    given = next((part.format.text for part in reversed(parts) if part.format.text is not None), None)
    if given is None:
        tower = config.vision
        vocabulary = _vocabulary(template)
        return TextConfig(
            tower.width, tower.hidden, tower.layers, tower.heads, vocabulary=vocabulary, positions=_TEXT_POSITIONS
        )  # fmt: skip
    if template.size > given.vocabulary:
        raise Corrupt(
            f"{template.tokenizer.name}: this tokenizer has {template.size} tokens, and the text tower only "
            f"{given.vocabulary}. Give the tokenizer that the text tower was trained with."
        )
    return given


def _vocabulary(template: ChatTemplate) -> int:
    return -(-template.size // _ROUND) * _ROUND


def weights_digest(parts: Sequence[Weights], template: ChatTemplate) -> str:
    """What a resumed run knows its model by: the tensors of its parts, and the tokenizer."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for name, array in sorted(part.tensors.items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(bytes_of(array))
    digest.update(template.to_bytes())
    return digest.hexdigest()
