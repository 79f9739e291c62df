"""Build encoders from an EncoderConfig: load a pretrained model, make the kind ``finetune``, ``frozen`` or ``split``.

Also low-rank adapters (LoRA, Hu et al., 2021; peft).
"""

from __future__ import annotations

import importlib
import os
import re
import socket
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from urllib.parse import urlparse

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tokenverse_pp.base.config import ChunkOptions, EncoderConfig
from tokenverse_pp.base.errors import UserError, needing, one_line
from tokenverse_pp.models.encoders.base import Backbone, Encoder, TrainedLayers, stack_frames, zero_padding
from tokenverse_pp.models.encoders.chunks import ChunkGrid
from tokenverse_pp.models.encoders.conformer import Wav2Vec2BertBackbone, Wav2Vec2ConformerBackbone
from tokenverse_pp.models.encoders.context import ContextNetwork, joined_states
from tokenverse_pp.models.encoders.moonshine import MoonshineBackbone
from tokenverse_pp.models.encoders.parakeet import NemotronBackbone, ParakeetBackbone
from tokenverse_pp.models.encoders.qwen3_asr import Qwen3AsrBackbone
from tokenverse_pp.models.encoders.wav2vec2 import Data2VecBackbone, Wav2Vec2Backbone, WavLMBackbone
from tokenverse_pp.models.encoders.whisper import WhisperBackbone


class Family(NamedTuple):
    """How the encoders of one ``model_type`` are loaded."""

    backbone: Callable[..., Backbone]
    encoder: str = ""
    """The encoder's class in transformers; empty: AutoModel loads the whole model."""
    part: str = ""
    """Name of its configuration within that of a larger model."""
    prefix: str = ""
    """Prefix of its weights in that model, as a regular expression."""
    extractor: str = ""
    """Its feature extractor's class, if the backbone takes one."""
    since: str = "4.40"
    """The first version of transformers that has it."""


PARAKEET = ("ParakeetEncoder", "encoder_config", r"^encoder\.", "ParakeetFeatureExtractor")
NEMOTRON = ("NemotronAsrStreamingEncoder", "encoder_config", r"^encoder\.", "NemotronAsrStreamingFeatureExtractor")
MOONSHINE = ("MoonshineStreamingEncoder", "encoder_config", r"^model\.encoder\.")
QWEN3 = ("Qwen3ASREncoder", "audio_config", r"^model\.audio_tower\.")
# ``model_type`` of config.json -> how it is loaded.
FAMILIES: Dict[str, Family] = {
    "wav2vec2": Family(Wav2Vec2Backbone),  # also XLSR-53, XLS-R, MMS
    "hubert": Family(Wav2Vec2Backbone),
    "unispeech": Family(Wav2Vec2Backbone),
    "unispeech-sat": Family(Wav2Vec2Backbone),
    "data2vec-audio": Family(Data2VecBackbone),
    "wavlm": Family(WavLMBackbone),
    "wav2vec2-conformer": Family(Wav2Vec2ConformerBackbone),
    "wav2vec2-bert": Family(Wav2Vec2BertBackbone),
    "whisper": Family(WhisperBackbone),
    "parakeet_encoder": Family(ParakeetBackbone, *PARAKEET, since="4.57"),
    "parakeet_ctc": Family(ParakeetBackbone, *PARAKEET, since="4.57"),
    "parakeet_rnnt": Family(ParakeetBackbone, *PARAKEET, since="5.12"),
    "parakeet_tdt": Family(ParakeetBackbone, *PARAKEET, since="5.9"),
    "nemotron_asr_streaming_encoder": Family(NemotronBackbone, *NEMOTRON, since="5.13"),
    "nemotron_asr_streaming": Family(NemotronBackbone, *NEMOTRON, since="5.13"),
    "moonshine_streaming_encoder": Family(MoonshineBackbone, *MOONSHINE, since="5.2"),
    "moonshine_streaming": Family(MoonshineBackbone, *MOONSHINE, since="5.2"),
    "qwen3_asr_encoder": Family(Qwen3AsrBackbone, *QWEN3, since="5.13"),
    "qwen3_asr": Family(Qwen3AsrBackbone, *QWEN3, since="5.13"),
}
# Without it, transformers asks on the terminal and reads the answer from standard input.
NO_CODE = {"trust_remote_code": False}
UNPICKLES_SAFELY = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
LOADING_ERRORS = (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_backbone(options: EncoderConfig, foreign: bool = False) -> Backbone:
    """Load the encoder ``options.name`` in float32; with ``random_init`` only its sizes are read.

    No code of its folder is run. Pickled weights are read by torch's restricted unpickler.

    Args:
        foreign: the name comes from a model folder, not from the user. Pickled weights are then refused with torch
            before 2.6, whose restricted unpickler can be made to run code (CVE-2025-32434).

    Raises:
        UserError: the encoder cannot be loaded; raised without delay if the hub cannot be reached.
    """
    config = from_pretrained(AutoConfig.from_pretrained, options.name, **NO_CODE)
    _check_attention(config, options.name)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"encoder.name: {options.name} has type {config.model_type}, expected one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[config.model_type]
    if family.encoder:
        return _load_part(options, family, config, foreign)
    if options.random_init:
        model = _random_model(config, options.name)
    elif "WhisperEncoder" in (config.architectures or []):
        model = load_weights(WhisperEncoder.from_pretrained, options.name, foreign)
    else:
        model = load_weights(AutoModel.from_pretrained, options.name, foreign, **NO_CODE)
    if config.model_type == "whisper":
        return WhisperBackbone(model.encoder if hasattr(model, "encoder") else model)
    normalise = options.normalise_audio
    return family.backbone(model, _normalises_audio(options.name) if normalise is None else normalise)


def _load_part(options: EncoderConfig, family: Family, config: Any, foreign: bool) -> Backbone:
    """Load only the encoder of a larger model."""
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    encoder_class: Any = getattr(module, family.encoder, None)
    if encoder_class is None:
        raise UserError(f"encoder.name: {options.name}: {_too_old(config.model_type)}")
    part = getattr(config, family.part, None)
    sizes = config if part is None else part
    _check_attention(sizes, options.name)
    if options.random_init:
        model = _random_model(sizes, options.name, encoder_class._from_config)
    else:
        mapping = {} if part is None else {"key_mapping": {family.prefix: ""}, "config": part}
        model = load_weights(encoder_class.from_pretrained, options.name, foreign, **mapping)
    if not family.extractor:
        return family.backbone(model)
    extractor_class: Any = getattr(transformers, family.extractor)
    try:
        extractor = from_pretrained(extractor_class.from_pretrained, options.name)
    except UserError:  # no such file: the published models use the class's defaults
        extractor = extractor_class(feature_size=sizes.num_mel_bins)
    return family.backbone(model, extractor)


def _too_old(model_type: str) -> str:
    return f"{model_type} needs transformers {FAMILIES[model_type].since} or later, here is {transformers.__version__}"


def _check_attention(config: Any, name: str) -> None:
    """Raise UserError for a named attention kernel, for which transformers would download compiled code."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and not re.fullmatch(r"\w+", asked):
        raise UserError(f"encoder.name: {name}: its config.json names {asked!r} as attention, which is not loaded")


def _random_model(config: Any, name: str, make: Optional[Callable[[Any], Any]] = None) -> nn.Module:
    if make is None:
        make = WhisperEncoder if config.model_type == "whisper" else partial(AutoModel.from_config, **NO_CODE)
    try:
        model = make(config)
    except Exception as error:  # config.json may hold anything
        raise UserError(f"encoder.name: {name}: no model can be made by its config.json: {_why(error)}") from error
    return model.float()


def load_weights(loader: Callable[..., Any], name: str, foreign: bool, **arguments: Any) -> nn.Module:
    """Load the weights; raise UserError if some are missing (transformers would initialise them at random)."""
    arguments["dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"] = torch.float32
    if foreign and not UNPICKLES_SAFELY:
        arguments["use_safetensors"] = True
    model, info = from_pretrained(loader, name, output_loading_info=True, **arguments)
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("masked_spec_embed"))
    if missing:
        raise UserError(f"encoder.name: {name} has no weights for {missing[0]} ({len(missing)} missing in all)")
    return model


def _normalises_audio(name: str) -> bool:
    """Whether the model expects normalised audio by its preprocessor_config.json; true if it has none."""
    try:
        return bool(from_pretrained(Wav2Vec2FeatureExtractor.from_pretrained, name).do_normalize)
    except UserError:
        return True


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def from_pretrained(loader: Callable[..., Any], name: str, **arguments: Any) -> Any:
    """Call ``loader(name)`` on a folder or the local cache first, then on the hub if it can be reached."""
    if not name:
        raise UserError("encoder.name: expected a Hugging Face hub name or a folder, got nothing")
    with quiet_transformers():
        try:
            return loader(name, local_files_only=True, **arguments)
        except LOADING_ERRORS as error:
            if Path(name).is_dir():
                raise UserError(f"encoder.name: cannot load folder {name}: {_why(error)}") from error
        if not hub_reachable():
            raise UserError(
                f"encoder.name: there is no folder {name}, and the Hugging Face hub cannot be reached "
                "(nor is a model of that name in its local cache)"
            )
        try:
            return loader(name, **arguments)
        except LOADING_ERRORS as error:
            raise UserError(f"encoder.name: {name} is neither a folder nor on the hub: {_why(error)}") from error


def hub_reachable() -> bool:
    """Whether the hub's name resolves (huggingface_hub would retry for half a minute); true with a proxy."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(key) for key in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    try:
        socket.getaddrinfo(urlparse(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _why(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "its config.json names code of its own (auto_map), which is not run"
    unknown = re.search(r"model type `([\w-]+)` but", str(error))
    if unknown and unknown.group(1) in FAMILIES:
        return _too_old(unknown.group(1))
    return one_line(error)


class FinetuneEncoder(Encoder):
    """First half: convolutions and feature projection. Second half: the transformer, then frame stacking.

    With ``stack=2`` the output has twice the transformer's width. The pretrained model's dropout is active in
    training mode, also in the first half; its SpecAugment and layerdrop are never used.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config.stack)
        self.feature_dim = backbone.hidden_size
        self.output_dim = backbone.hidden_size * config.stack
        if config.freeze_feature_encoder:
            backbone.freeze_embedding()
        backbone.freeze_layers(config.freeze_layers)
        if config.lora_rank:
            add_lora(backbone, config)

    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; returns the transformer's input."""
        return self.backbone.embed(audio, lens, chunks), self.feature_lens(lens)

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None, registers: int = 0
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; returns the stacked output of the transformer's final norm. No register frames."""
        (x,) = self.backbone.transform(features, lens, grid=None if chunks is None else self.grid(chunks))
        return stack_frames(zero_padding(x, lens), lens, self.stack)


class ContextEncoder(Encoder):
    """A frozen first half, whose features can be stored; the second half ends in stacking and a context network.

    The context network sees the hidden states ``EncoderConfig.layers``, each normalised over its channels.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config.stack)
        backbone.requires_grad_(False).eval()
        self.layers = tuple(config.layers)
        self.highest_layer = backbone.highest(self.layers)
        self.output_dim = config.context_dim

    def make_context(self, config: EncoderConfig) -> None:
        """Make the context network; called last in ``__init__``, so that adapters draw their random weights first."""
        self.context = ContextNetwork(
            self.backbone.hidden_size * len(self.layers) * config.stack,
            dim=config.context_dim,
            num_layers=config.context_layers,
            heads=config.context_heads,
            ffn_dim=config.context_ffn,
            kernel=config.context_kernel,
            dropout=config.context_dropout,
        )

    def layer_stacks(self) -> List[Tuple[TrainedLayers, int]]:
        """See Encoder; the context network is above the layers of the backbone."""
        return [(self.context.trained_layers, len(self.context.layers))]

    def add_context(self, states: Tensor, lens: Tensor, grid: Optional[ChunkGrid]) -> Tuple[Tensor, Tensor]:
        """Joined hidden states (N, T, F), zero on padding, lens (N,) -> `contextualise`'s result; grid: at the seam."""
        x, lens = stack_frames(states, lens, self.stack)
        return self.context(x, lens, None if grid is None else grid.stacked(self.stack)), lens

    def lookahead_ms(self, chunks: ChunkOptions) -> float:
        """See Encoder; the context network's convolutions see more."""
        frames = self.context.lookahead(self.grid(chunks).stacked(self.stack)) * self.stack
        return super().lookahead_ms(chunks) + 1000 * frames * self.frame_shift


class FrozenEncoder(ContextEncoder):
    """First half: a complete pretrained encoder, not trained. Second half: stacking and a context network.

    The first half always runs in eval mode without gradients. Its weights come from ``EncoderConfig.name``:
    ``frozen_prefixes`` keeps them out of checkpoints.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config)
        self.feature_dim = backbone.hidden_size * len(self.layers)
        self.make_context(config)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Set the mode of the context network; the pretrained encoder stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; the chosen hidden states, each normalised over its channels, (N, T, F) float32."""
        frame_lens = self.feature_lens(lens)
        grid = None if chunks is None else self.grid(chunks)
        states = self.backbone.transform(self.backbone.embed(audio, lens, chunks), frame_lens, self.layers, grid)
        features = joined_states(states)
        return zero_padding(features, frame_lens), frame_lens

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None, registers: int = 0
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; frames are stacked before the context network."""
        features = zero_padding(features, lens)
        return self.add_context(features, lens, None if chunks is None else self.grid(chunks).behind(registers))

    def frozen_prefixes(self) -> Tuple[str, ...]:
        """The pretrained encoder's weights."""
        return ("backbone.",)


class SplitEncoder(ContextEncoder):
    """First half: frozen layers up to ``EncoderConfig.split_layer``. Second half: the layers above, a context network.

    The upper layers are trained, fully or through adapters (``lora_rank``), up to the highest one in
    ``EncoderConfig.layers``; the final norm is trained only with -1. Higher layers are not used, and DDP does not
    accept parameters without a gradient. A run can start from a `FrozenEncoder` with the same ``layers``: both compute
    the same function at first.
    """

    def __init__(self, backbone: Backbone, config: EncoderConfig) -> None:
        super().__init__(backbone, config)
        self.split_layer = config.split_layer
        self.feature_dim = backbone.hidden_size
        if config.lora_rank:
            add_lora(backbone, config, self.split_layer, self.highest_layer)
        else:
            for module in backbone.upper(self.split_layer, self.layers):
                module.requires_grad_(True)
        # What checkpoints contain. `requires_grad` changes later: ``training.freeze`` and ``train_only`` set it.
        self.trained_names = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        self.make_context(config)

    def layer_stacks(self) -> List[Tuple[TrainedLayers, int]]:
        """See Encoder."""
        return [(self.backbone.trained_layers, self.highest_layer - self.split_layer), *super().layer_stacks()]

    def train(self, mode: bool = True) -> SplitEncoder:
        """Set the mode of the second half; the frozen layers, position embedding and convolutions stay in eval mode."""
        super().train(mode)
        self.backbone.eval()
        for layer in self.backbone.layers[self.split_layer : self.highest_layer]:
            layer.train(mode)
        self.backbone.training = mode  # read by gradient checkpointing
        return self

    @torch.no_grad()
    def extract(self, audio: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None) -> Tuple[Tensor, Tensor]:
        """See Encoder; the hidden state of ``split_layer``, not normalised, (N, T, F) float32."""
        frame_lens = self.feature_lens(lens)
        mode, self.backbone.training = self.backbone.training, False  # no dropout below the seam
        grid = None if chunks is None else self.grid(chunks)
        (x,) = self.backbone.transform(self.backbone.embed(audio, lens, chunks), frame_lens, (self.split_layer,), grid)
        self.backbone.training = mode
        return zero_padding(x.float(), frame_lens), frame_lens

    def contextualise(
        self, features: Tensor, lens: Tensor, chunks: Optional[ChunkOptions] = None, registers: int = 0
    ) -> Tuple[Tensor, Tensor]:
        """See Encoder; runs the upper layers, stacks the chosen hidden states, runs the context network."""
        features = zero_padding(features, lens)
        grid = None if chunks is None else self.grid(chunks).behind(registers)
        seen, own = grid, self.backbone.own_chunks
        if registers and grid is None and own is not None:
            seen = own.behind(registers)  # the windows stay where they are, and all of them see the registers
        arguments = self.backbone.layer_arguments(features, lens, seen)
        states = self.backbone.run_layers(features, self.layers, arguments, first=self.split_layer)
        return self.add_context(zero_padding(joined_states(states), lens), lens, grid)

    def frozen_prefixes(self) -> Tuple[str, ...]:
        """The weights that training does not change: all but the upper layers, or all but the adapters."""
        parameters = dict(self.backbone.named_parameters())
        trained = self.trained_names & set(parameters)
        if not trained:  # adapters that have been merged: the upper layers are no longer the pretrained ones
            upper = self.backbone.upper(self.split_layer, self.layers)
            ids = {id(parameter) for module in upper for parameter in module.parameters()}
            trained = {name for name, parameter in parameters.items() if id(parameter) in ids}
        return tuple(f"backbone.{name}" for name in self.backbone.state_dict() if name not in trained)

    def unread_prefixes(self) -> Tuple[str, ...]:
        """The layers above the highest one that runs, and the final norm without -1."""
        unread: List[nn.Module] = list(self.backbone.layers[self.highest_layer :])
        if -1 not in self.layers and self.backbone.final_norm is not None:
            unread.append(self.backbone.final_norm)
        ids = {id(module) for module in unread}
        return tuple(f"backbone.{name}." for name, module in self.backbone.named_modules() if id(module) in ids)


# Names in the layers of transformers: wav2vec2's family (`attention`, `feed_forward`), Whisper, Qwen3-ASR (`fc1`),
# Moonshine (`mlp`), Parakeet (`linear1`), and w2v-BERT and wav2vec2-conformer (`linear_q`, `ffn1`).
PROJECTIONS = r".*layers\.({})\.(attention|self_attn)\.([qkvo]_proj|out_proj|linear_(q|k|v|out))"
FEED_FORWARD = (
    r".*layers\.({})\.((mlp\.)?fc[12]|(feed_forward|ffn[12])\.(intermediate|output)_dense|feed_forward[12]\.linear[12])"
)


def add_lora(backbone: Backbone, config: EncoderConfig, first: int = 0, last: Optional[int] = None) -> None:
    """Freeze a backbone and add adapters to its matrices (``config.lora_*``); initially the output is unchanged.

    Layers ``first`` to ``last`` (exclusive; None: all above) get adapters. Raises UserError if peft is missing, for
    WavLM, whose attention uses the weights of its projections directly, or if no layer is left.
    """
    with needing("--model.encoder.lora_rank: needs peft", "lora"):
        from peft import LoraConfig, inject_adapter_in_model
    if type(backbone).__name__ == "WavLMBackbone":
        raise UserError("--model.encoder.lora_rank: WavLM's attention takes no adapters; use wav2vec2 or HuBERT models")
    numbers = "|".join(str(number) for number in range(first, len(backbone.layers) if last is None else last))
    if not numbers:
        raise UserError(
            f"--model.encoder.lora_rank={config.lora_rank}: no layer runs above "
            f"--model.encoder.split_layer={first}: --model.encoder.layers names none"
        )
    backbone.requires_grad_(False)
    targets = PROJECTIONS.format(numbers)
    if config.lora_feed_forward:
        targets = f"({targets})|({FEED_FORWARD.format(numbers)})"
    options: Any = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
    inject_adapter_in_model(LoraConfig(target_modules=targets, **options), backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_lora(backbone: nn.Module) -> None:
    """Merge the adapters into the weights; this leaves a plain encoder with the same output."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in backbone.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, module.get_base_layer())


def build_encoder(config: EncoderConfig, foreign: bool = False) -> Encoder:
    """Load the pretrained encoder and build both halves according to ``config``; ``foreign``: see `load_backbone`.

    Raises UserError for an unknown name, folder or family, incomplete weights, or a value out of range.
    """
    backbone = load_backbone(config, foreign)
    config.validate(len(backbone.layers))
    # from_pretrained returns models in eval mode, but new modules start in train mode.
    kinds: Dict[str, Callable[[Backbone, EncoderConfig], Encoder]]
    kinds = {"finetune": FinetuneEncoder, "frozen": FrozenEncoder, "split": SplitEncoder}
    encoder = kinds[config.kind](backbone, config).train()
    count = config.checkpoint_layers
    if not isinstance(count, int):
        count = encoder.trained_depth if config.gradient_checkpointing else 0
    encoder.recompute(count)
    return encoder
