"""The options of an encoder.

The sections of the configuration: typed dataclasses with their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Union

from tokenverse_pp.base.errors import UserError


@dataclass
class EncoderConfig:
    """Which pretrained encoder to use, and how its two halves are made.

    Attributes:
        name: hub name or folder of a wav2vec2 (XLSR, XLS-R, MMS), HuBERT, WavLM or Whisper model.
        kind: ``finetune``: the halves are the pretrained encoder's own, convolutions + feature projection |
            transformer. ``frozen``: the first half is the whole pretrained encoder, not trained, whose output
            can be stored; the second is a small trainable context network. ``split``: the first half ends behind
            the layer ``split_layer`` and can be stored too; the second is the layers above, which are trained, and
            a context network.
        layers: ``frozen`` and ``split``: the hidden states that the context network sees. 0 is the input of the
            lowest layer, n the output of layer n (without the final norm), -1 the output of the highest after the
            final norm. Each goes through a LayerNorm without parameters, then they are concatenated. ``frozen``:
            these are the features at the seam; ``split``: none is below ``split_layer``, and only the layers up to
            the highest of them are trained (the final norm only with -1).
        split_layer: ``split`` only: the number of the hidden state at the seam.
        stack: frames joined into one, 1 or 2. ``frozen`` and ``split``: before the context network. ``finetune``:
            after the transformer, and nothing follows, so the output dimension doubles.
        normalise_audio: zero mean and unit variance of each utterance's samples before a wav2vec2-like model;
            by default what its ``preprocessor_config.json`` says (true where there is none). Whisper ignores
            it.
        freeze_feature_encoder: ``finetune``: do not train the convolutions.
        freeze_layers: ``finetune``: do not train the lowest n transformer layers and the position embedding
            below them; -1: nor the final norm, that is nothing of the transformer.
        random_init: random weights, only the sizes are from config.json (from-scratch training, toy models).
        gradient_checkpointing: compute the layers that are trained (the transformer's, or the context network's)
            again in the backward pass instead of keeping their activations, to save memory.
        lora_rank: ``finetune`` and ``split``: freeze the whole encoder and train adapters of this rank (LoRA, needs
            peft) on its (``split``: the upper layers') attention projections; 0: none. They are new weights and
            take ``optim.lr``.
        lora_alpha: the adapters' output is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: dropout before the adapters.
        lora_feed_forward: adapters on the two matrices of each feed-forward part as well.
        context_layers: ``frozen`` and ``split`` only, as all below: number of conformer layers of the context network.
        context_dim: width of the context network, the encoder's output dimension.
        context_heads: attention heads; must divide ``context_dim`` into even sizes.
        context_ffn: inner width of each of the two feed-forward halves of a layer.
        context_kernel: frames seen by the depthwise convolution, odd.
        context_dropout: dropout after each part of a layer (none inside).
    """

    name: str = ""
    kind: Literal["finetune", "frozen", "split"] = "finetune"
    layers: List[int] = field(default_factory=lambda: [-1])
    split_layer: int = 0
    stack: int = 1
    normalise_audio: Optional[bool] = None
    freeze_feature_encoder: bool = True
    freeze_layers: int = 0
    random_init: bool = False
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_feed_forward: bool = False
    context_layers: int = 3
    context_dim: int = 256
    context_heads: int = 4
    context_ffn: int = 768
    context_kernel: int = 15
    context_dropout: float = 0.1

    def validate(self, num_layers: int) -> None:
        """Check the values that do not depend on weights, given the pretrained encoder's number of layers.

        Raises:
            UserError: names the option and what was expected.
        """
        if self.kind not in ("finetune", "frozen", "split"):
            raise UserError(f"encoder.kind: expected finetune, frozen or split, got {self.kind!r}")
        if self.stack not in (1, 2):
            raise UserError(f"encoder.stack: expected 1 or 2, got {self.stack}")
        if not -1 <= self.freeze_layers <= num_layers:
            raise UserError(f"encoder.freeze_layers: expected -1 to {num_layers}, got {self.freeze_layers}")
        if self.lora_rank < 0 or (self.lora_rank and self.kind == "frozen"):
            raise UserError(
                f"encoder.lora_rank: expected 0 or, with kind finetune or split, a rank; got {self.lora_rank}"
            )
        if self.kind == "split":
            self._validate_split(num_layers)
        if self.kind != "finetune":
            self._validate_context(num_layers)

    def _validate_split(self, num_layers: int) -> None:
        if not 0 <= self.split_layer < num_layers:
            raise UserError(f"encoder.split_layer: expected 0 to {num_layers - 1}, got {self.split_layer}")
        if any(layer != -1 and layer < self.split_layer for layer in self.layers):
            raise UserError(
                f"encoder.layers: expected -1 or numbers from split_layer={self.split_layer}, got {self.layers}"
            )

    def _validate_context(self, num_layers: int) -> None:
        if not self.layers or any(not -1 <= layer <= num_layers for layer in self.layers):
            raise UserError(f"encoder.layers: expected numbers from -1 to {num_layers}, got {self.layers}")
        for name in ("context_layers", "context_dim", "context_heads", "context_ffn", "context_kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"encoder.{name}: expected at least 1, got {getattr(self, name)}")
        if self.context_dim % (2 * self.context_heads):
            raise UserError(
                f"encoder.context_dim: expected a multiple of 2 * context_heads = {2 * self.context_heads}, "
                f"got {self.context_dim}"
            )
        if self.context_kernel % 2 == 0:
            raise UserError(f"encoder.context_kernel: expected an odd number, got {self.context_kernel}")


@dataclass
class SpecAugmentConfig:
    """How much is masked. The features at the seam have zero mean, so zero is their "nothing"."""

    time_share: float = 0.15  # of the valid frames, about
    time_span: int = 20  # frames at the seam, longest span
    channel_share: float = 0.1  # of the channels, about
    channel_span: int = 32


@dataclass(frozen=True)
class ChunkOptions:
    """How much an encoder sees at a time (XLSR-Transducer, arXiv 2407.04439).

    Args:
        chunk_ms: length of a chunk in ms; 0: full context, no chunks.
        left_chunks: chunks before its own that a frame sees; -1: all (a cache that grows with the stream).
        sinks: attention sinks: so many of the utterance's first frames stay visible for ever. In frames at the seam
            (50 a second); a network that runs on stacked frames has as many fewer.
        strict: cut the right side of the encoder's convolutions at the chunk's end, so that nothing is looked ahead at.
            Else they keep the form that the encoder was pretrained with, which streaming refuses.

    Raises:
        UserError: a value is out of range.
    """

    chunk_ms: int = 640
    left_chunks: int = 4
    sinks: int = 0
    strict: bool = True

    def __post_init__(self) -> None:
        if self.chunk_ms < 0:
            raise UserError(f"--chunk-ms={self.chunk_ms}: expected milliseconds, or 0 for full context")
        if self.left_chunks < -1:
            raise UserError(f"--left-chunks={self.left_chunks}: expected a number of chunks, or -1 for all")
        if self.sinks < 0:
            raise UserError(f"--sinks={self.sinks}: expected a number of frames from 0 on")

    @property
    def full(self) -> bool:
        """Whether this is full context: no chunks at all."""
        return self.chunk_ms == 0

    @property
    def chunk_samples(self) -> int:
        """Samples at 16 kHz in a chunk."""
        return self.chunk_ms * SAMPLE_RATE // 1000


SAMPLE_RATE = 16000


@dataclass
class DataConfig:
    """What is trained on. Paths are of lhotse CutSets (JSONL, plain or gzipped) or of lhotse Shar folders."""

    train: List[str] = field(default_factory=list)
    valid: List[str] = field(default_factory=list)
    stored_features: bool = False  # cuts carry features of the frozen encoder (`tokenverse-pp manifest store-features`)
    max_duration: float = 120.0  # seconds of audio in a batch, per rank
    max_cuts: Optional[int] = None  # cuts in a batch, per rank
    num_buckets: int = 20  # of similar duration, for the dynamic bucketing sampler; 1 = one shuffled stream
    buffer_size: int = 20000  # cuts that the sampler holds
    shuffle: bool = True
    # Shares of the files of `train` in what is drawn (positive numbers, one a file); cuts then come again as needed.
    # Without them each cut comes once an epoch.
    weights: List[float] = field(default_factory=list)
    epoch_cuts: Optional[int] = None  # cuts drawn in an epoch, with weights; none = as many as the files hold
    round_cuts: int = 50000  # an epoch is drawn in rounds of so many cuts: a resumed run draws one round again
    num_workers: int = 1  # processes that load batches; 0 = in the training process
    min_seconds: float = 0.1  # shorter cuts are left out, by name
    max_seconds: float = 30.0  # longer ones too
    max_tokens: Optional[int] = None  # and those whose target, with the tokens of all their tasks, is longer
    # Share of the target tokens that may be <unk>, because the vocabulary lacks their characters; with more the run
    # stops. Looked at before the first step (the first 10,000 cuts), and after each round.
    max_unk_share: float = 0.01
    validate: bool = True  # see to labels and audio files of all cuts before training starts
    allow_commands: bool = False  # run shell commands that manifests name as sources of audio (docs/security.md)
    allow_urls: bool = False  # open URLs that manifests name


@dataclass
class TasksConfig:
    """Which tasks the model knows, and which are active for a training utterance."""

    names: List[str] = field(default_factory=lambda: ["asr"])
    languages: List[str] = field(default_factory=list)  # for lid: codes such as fr
    entity_types: List[str] = field(default_factory=list)  # for ner: none = untyped [NE]
    plugins: List[str] = field(default_factory=list)  # Python files, or modules, that define tasks (docs/new_task.md)
    settings: Dict[str, Dict[str, Any]] = field(default_factory=dict)  # options of such tasks: {task: {option: value}}
    activation: str = "labelled"  # labelled | subset | bernoulli
    activation_prob: float = 0.5  # bernoulli: chance of each labelled task
    full_only: bool = False  # TokenVerse (v1): only cuts labelled for every task

    def options(self) -> Dict[str, Dict[str, Any]]:
        """Options by task, for `tokenverse_pp.tasks.build_tasks`."""
        return {"lid": {"languages": self.languages}, "ner": {"types": self.entity_types}, **self.settings}


@dataclass
class TokenizerConfig:
    """SentencePiece."""

    model: Optional[str] = None  # an existing model file; none = train one on data.train
    vocab_size: int = 500


@dataclass
class VectorsConfig:
    """Task vectors."""

    placement: str = "features"  # none | features | encoder | both
    strategy: str = "sum"  # sum | combination


@dataclass
class LossConfig:
    """The pruned RNN-T loss (Kuang et al., 2022); defaults as icefall's zipformer recipe."""

    backend: str = "auto"  # auto | k2 | native
    prune_range: int = 5
    lm_scale: float = 0.25
    am_scale: float = 0.0
    rnnt_type: str = "regular"  # regular | modified | constrained
    delay_penalty: float = 0.0
    simple_scale: float = 0.5  # weight of the simple loss after warm-up
    ctc_scale: float = 0.0  # weight of an auxiliary CTC loss on the encoder; helps encoders that start at random
    warm_steps: int = 2000  # simple 1 -> simple_scale, pruned 0.1 -> 1


@dataclass
class StreamingConfig:
    """Multi-chunk training: what the encoder sees, drawn for each batch (`tokenverse_pp.models.masks.ChunkOptions`)."""

    chunk_ms: List[int] = field(default_factory=list)  # 0 = full context; empty = always full context
    left_chunks: List[int] = field(default_factory=lambda: [-1])  # chunks before its own that a frame sees; -1 = all
    sinks: List[int] = field(default_factory=lambda: [0])  # first frames that stay visible
    strict: bool = True  # cut the right side of convolutions at the chunk's end, as in streaming


@dataclass
class ModelConfig:
    """The network."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    predictor_dim: int = 512
    predictor_dropout: float = 0.0
    context_size: int = 2
    joiner_dim: int = 512


@dataclass
class OptimConfig:
    """AdamW with three learning rates and one schedule."""

    lr: float = 1e-3  # all but what follows
    encoder_lr: float = 1e-4  # pretrained encoder
    # Task vectors. They start at zero beside frames of norm sqrt(dimension): at 1e-3 they reached 3% of it in 4500
    # steps of recipes/human_speech, and the model did not heed them.
    vector_lr: float = 1e-2
    layer_decay: float = 1.0  # the encoder's rate is multiplied by it for each layer down from the top one
    weight_decay: float = 0.01  # not on biases, norms and task vectors
    warmup_steps: int = 500
    decay: str = "cosine"  # constant | inverse_sqrt | cosine (to zero at training.max_steps)
    clip: float = 5.0  # gradient norm


@dataclass
class TrainingConfig:
    """The run."""

    exp_dir: str = "exp"
    epochs: int = 1000000  # whichever of epochs and max_steps ends first
    max_steps: int = 10000
    accumulate: int = 1  # batches per step and rank
    precision: str = "fp32"  # fp32 | bf16 | fp16 (autocast)
    seed: int = 42
    log_every: int = 50  # steps
    valid_every: int = 500  # steps
    save_every: int = 500  # steps
    keep_last: int = 5  # checkpoints
    keep_best: int = 0  # further checkpoints, the best by `best_by`; each validation then writes one
    best_by: str = "loss"  # loss | wer, on the valid cuts
    average_last: int = 5  # checkpoints averaged into the final model; they must be kept
    average_period: int = 0  # steps between updates of a running average of the weights; 0 = none
    # auto: go on from the newest whole checkpoint in exp_dir, if there is any. true: from the newest, which must be
    # there and whole. false: start anew, where no checkpoint is. Or the folder of a checkpoint.
    resume: Union[bool, str] = "auto"
    allow_changed_data: bool = False  # resume though the files of data.train have changed
    max_bad_steps: int = 20  # steps in a row whose loss or gradient is not finite, before the run gives up
    # A model folder: start from its weights. Tasks and languages that it lacks are added to it (docs/transfer.md).
    init_from: Optional[str] = None
    train_only: str = "all"  # all | new (what init_from had not: rows of new tokens, new task vectors) | new_and_joiner
    # [[step, n], ..]: from that step on the top n layers of the encoder are trained (0: none, -1: all that
    # model.encoder does not freeze for good). Empty: all from the start.
    freeze: List[List[int]] = field(default_factory=list)
    scan: bool = False  # run the worst batches before the first step: does the memory suffice?
    peer_timeout: float = 60.0  # seconds after which a rank that gives no sign of life counts as dead
    threads: int = 0  # CPU threads of torch; 0 = torch's choice


@dataclass
class Config:
    """Everything. The resolved form is saved with every model."""

    data: DataConfig = field(default_factory=DataConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
