"""Keye-VL's configuration for transformers, as kvtools writes it beside a model. Tested with transformers 5.23.

Fields are those of the published config.json: the decoder's at the top, the tower's in `vision_config`.
"""

from transformers import PretrainedConfig, Qwen3Config


class KeyeVisionConfig(PretrainedConfig):
    """The vision tower. joint: all frames of a video attend to one another; interpolate, rope: see modeling_keye.py."""

    model_type = "keye_vision"
    base_config_key = "vision_config"

    def __init__(
        self, hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, num_channels=3,
        image_size=384, patch_size=14, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, spatial_merge_size=2,
        tokens_per_second=2, joint=True, interpolate=True, rope=True, rope_theta=1e4, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_channels, self.image_size, self.patch_size = num_channels, image_size, patch_size
        self.hidden_act, self.layer_norm_eps = hidden_act, layer_norm_eps
        self.spatial_merge_size, self.tokens_per_second = spatial_merge_size, tokens_per_second
        self.joint, self.interpolate, self.rope, self.rope_theta = joint, interpolate, rope, rope_theta


class KeyeConfig(Qwen3Config):
    """The whole model: Qwen3's fields and those of its pictures and videos."""

    model_type = "Keye"
    sub_configs = {"vision_config": KeyeVisionConfig}

    def __init__(
        self, vision_config=None, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653, text_config=None, **kwargs,
    ):  # fmt: skip
        if isinstance(vision_config, dict):
            vision_config = KeyeVisionConfig(**vision_config)
        kwargs = {**kwargs, **(text_config or {})}  # some published files keep the decoder's fields there
        rope = {**(kwargs.pop("rope_scaling", None) or {}), **(kwargs.pop("rope_parameters", None) or {})}
        theta = rope.pop("rope_theta", kwargs.pop("rope_theta", 1e6))
        kwargs["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        self.vision_config = vision_config or KeyeVisionConfig()
        self.image_token_id, self.video_token_id = image_token_id, video_token_id
        self.vision_start_token_id, self.vision_end_token_id = vision_start_token_id, vision_end_token_id
        super().__init__(**kwargs)
        self.rope_parameters = {**rope, **self.rope_parameters}  # with mrope_section, as other programs look for it

    @property
    def rope_base(self):
        """The base of the decoder's rotary frequencies."""
        return self.rope_parameters["rope_theta"]
