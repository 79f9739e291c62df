"""The configuration of a run: typed dataclasses with their defaults, one for each section of the YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Optional, Union

from tokenverse_pp.base.errors import UserError


def at_least(least: float, default: Any) -> Any:
    """A field whose value is at least ``least`` (checked by `config_files.check_config`)."""
    return field(default=default, metadata={"least": least})


def between(least: float, most: float, default: Any) -> Any:
    """A field whose value is from ``least`` to ``most``."""
    return field(default=default, metadata={"least": least, "most": most})


def share(default: float) -> Any:
    """A field whose value is from 0 to 1."""
    return between(0, 1, default)


MOST_RANK = 4096  # of LoRA: no matrix of a speech encoder has a higher rank
MOST_PREDICTOR_LAYERS = 16  # published predictors have two


@dataclass
class EncoderConfig:
    """Which pretrained encoder to use, and how its two halves are built."""

    name: str = ""
    """Hub name or folder of a model of transformers: wav2vec2 (XLSR, XLS-R, MMS), HuBERT, WavLM, UniSpeech, data2vec,
    wav2vec2-conformer, w2v-BERT, Whisper, Parakeet, Nemotron, Moonshine (streaming) or Qwen3-ASR."""
    kind: Literal["finetune", "frozen", "split"] = "finetune"
    """finetune: the first half is the pretrained encoder's convolutions and feature projection, the second its
    transformer. frozen: the first half is the complete pretrained encoder, which is not trained and whose output can be
    stored; the second is a small trainable context network. split: the first half ends at the hidden state split_layer
    and can be stored too; the second is the layers above it, which are trained, and a context network."""
    layers: List[int] = field(default_factory=lambda: [-1])
    """kind frozen or split: the hidden states that the context network takes. 0 is the input of the lowest layer, n the
    output of layer n (without the final norm), -1 the output of the highest layer after the final norm. Each goes
    through a LayerNorm without parameters, then they are concatenated. frozen: these are the features at the seam.
    split: none may be below split_layer, and only the layers up to the highest of them are trained (the final norm only
    with -1)."""
    split_layer: int = 0
    """kind split: number of the hidden state at the seam."""
    stack: int = 1
    """Frames joined into one, 1 or 2. kind frozen or split: before the context network. kind finetune: after the
    transformer, so the output dimension doubles."""
    normalise_audio: Optional[bool] = None
    """Scale the samples of each utterance to zero mean and unit variance before a wav2vec2-like model. Default: as its
    preprocessor_config.json says, or true without that file. Whisper ignores it."""
    freeze_feature_encoder: bool = True
    """kind finetune: do not train the convolutions."""
    freeze_layers: int = 0
    """kind finetune: do not train the lowest n transformer layers and the position embedding below them; -1: do not
    train any part of the transformer. Not with lora_rank."""
    random_init: bool = False
    """Start from random weights; only sizes are read from config.json (training from scratch, toy models)."""
    gradient_checkpointing: bool = False
    """Recompute the activations of the trained layers in the backward pass instead of keeping them, to save memory."""
    checkpoint_layers: Optional[Union[int, Literal["auto"]]] = None
    """How many of the trained layers are recomputed, counted from the lowest. auto: on a GPU as few as
    training.memory_gb allows, measured on the largest batches before the first step; elsewhere as
    gradient_checkpointing says. null: all with gradient_checkpointing, or none."""
    lora_rank: int = 0
    """kind finetune or split: freeze the encoder and train LoRA adapters of this rank (needs peft) on the attention
    projections (split: of the upper layers); 0: no adapters. The adapters use optim.lr."""
    lora_alpha: float = 16.0
    """The output of the LoRA adapters is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = share(0.0)
    """Dropout before the LoRA adapters."""
    lora_feed_forward: bool = False
    """Add LoRA adapters to the two matrices of each feed-forward module as well."""
    context_layers: int = 3
    """kind frozen or split: number of conformer layers of the context network."""
    context_dim: int = 256
    """Width of the context network, which is the output dimension of the encoder."""
    context_heads: int = 4
    """Attention heads of the context network; context_dim must be a multiple of 2 * context_heads."""
    context_ffn: int = 768
    """Inner width of each of the two feed-forward modules of a context layer."""
    context_kernel: int = 15
    """Kernel size in frames of the depthwise convolution of a context layer; odd."""
    context_dropout: float = share(0.1)
    """Dropout after each module of a context layer."""

    def validate(self, num_layers: int) -> None:
        """Check the values, given the pretrained encoder's number of layers (raises UserError naming the option)."""
        if self.kind not in ("finetune", "frozen", "split"):
            raise UserError(f"encoder.kind: expected finetune, frozen or split, got {self.kind!r}")
        if self.stack not in (1, 2):
            raise UserError(f"encoder.stack: expected 1 or 2, got {self.stack}")
        if not -1 <= self.freeze_layers <= num_layers:
            raise UserError(f"encoder.freeze_layers: expected -1 to {num_layers}, got {self.freeze_layers}")
        if not 0 <= self.lora_rank <= MOST_RANK or (self.lora_rank and self.kind == "frozen"):
            raise UserError(
                f"encoder.lora_rank: expected 0 or, with kind finetune or split, a rank; got {self.lora_rank}"
            )
        count = self.checkpoint_layers
        if count is not None and count != "auto" and (not isinstance(count, int) or count < 0):
            raise UserError(f"encoder.checkpoint_layers: expected auto or a number of layers from 0 on, got {count!r}")
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
    """SpecAugment on the features at the seam.

    An utterance of which all frames, or all channels, would be masked is left without such masks.
    """

    time_share: float = share(0.15)
    """Share of the valid frames that is masked, on average."""
    time_span: int = at_least(1, 20)
    """Longest masked span of frames at the seam."""
    channel_share: float = share(0.1)
    """Share of the channels that is masked, on average."""
    channel_span: int = at_least(1, 32)
    """Longest masked span of channels."""
    fill: Optional[Literal["mean", "zero"]] = None
    """Value of masked frames and channels. mean: the mean of the channel over the utterance. zero: zeros, as in
    releases without this option; a model may then learn to read the active tasks from frames of zeros, which decoding
    has only with vectors.registers. null: mean, or in a run that continues from a model (training.resume,
    training.init_from), that model's value."""


@dataclass(frozen=True)
class ChunkOptions:
    """How much audio an encoder sees at a time (arXiv 2407.04439). Raises UserError if a value is out of range."""

    chunk_ms: int = 640
    """Length of a chunk in milliseconds; 0: full context."""
    left_chunks: int = 4
    """Chunks to the left of its own that a frame sees; -1: all, with a cache that grows with the stream."""
    sinks: int = 0
    """Attention sinks: number of first frames of the utterance that stay visible. Counted at the seam (50 a second); a
    network that runs on stacked frames has proportionally fewer."""
    strict: bool = True
    """Cut the right side of the encoder's convolutions at the end of the chunk, so that there is no look-ahead.
    Otherwise they keep their pretrained form, which streaming refuses."""

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
IN_CHUNKS = ("chunk_ms", "left_chunks", "sinks")  # the options of streams in `ChunkOptions`


@dataclass
class AugmentConfig:
    """Changes of the audio of training cuts, drawn anew in each epoch; all off by default.

    They are applied in the order of these options. Validation uses unchanged audio.
    """

    speed: List[float] = field(default_factory=list)
    """Factors of the speed to draw from, for example [0.9, 1.0, 1.1]; pitch and tempo change together. Empty: none."""
    rooms: List[str] = field(default_factory=list)
    """Room impulse responses to draw from: files of cuts at 16 kHz, or the word generated for 40 synthetic ones. Empty:
    none."""
    room_prob: float = share(0.3)
    """Share of the cuts that are put into a room, with data.augment.rooms."""
    noise: List[str] = field(default_factory=list)
    """Noise to draw from: files of cuts at 16 kHz, or the word generated for white, pink and brown noise. Noise shorter
    than the speech is added once, at a random place. Empty: none."""
    noise_prob: float = share(0.5)
    """Share of the cuts that noise is added to, with data.augment.noise."""
    noise_snr: List[float] = field(default_factory=lambda: [5.0, 25.0])
    """Lowest and highest ratio of speech to noise in dB."""
    telephone_prob: float = share(0.0)
    """Share of the cuts that lose all frequencies above 4 kHz, as on a telephone."""
    volume_db: List[float] = field(default_factory=list)
    """Lowest and highest gain in dB, for example [-12, 3]. Empty: none."""

    @property
    def enabled(self) -> bool:
        """Whether anything is changed."""
        return bool(self.speed or self.rooms or self.noise or self.telephone_prob or self.volume_db)


@dataclass
class DataConfig:
    """The training and validation data."""

    train: List[str] = field(default_factory=list)
    """Cuts to train on: lhotse CutSets (JSONL, plain or gzipped) or lhotse Shar folders."""
    valid: List[str] = field(default_factory=list)
    """Cuts to validate on: files or folders as in data.train."""
    stored_features: Optional[bool] = None
    """Train on features of the frozen encoder that the cuts carry (see `tokenverse-pp manifest store-features`). null:
    true if the cuts of data.train and data.valid carry those of this encoder, and data.augment is off."""
    max_duration: float = at_least(0.1, 120.0)
    """Seconds of audio in a batch, per rank."""
    max_cuts: Optional[int] = at_least(1, None)
    """Most cuts in a batch, per rank; null: no limit."""
    max_batch_tokens: Optional[int] = at_least(1, None)
    """Most target tokens in a batch, per rank: the longest target, with all its tasks, times the number of cuts. Only a
    batch of one cut may have more. The pruned loss needs memory for frames and tokens. null: no limit."""
    num_buckets: int = at_least(1, 20)
    """Buckets of cuts of similar duration in the dynamic bucketing sampler; 1: one shuffled stream."""
    buffer_size: int = at_least(1, 20000)
    """Cuts that the sampler holds in memory."""
    shuffle: bool = True
    """Shuffle the training cuts in every epoch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    weights: List[float] = field(default_factory=list)
    """Sampling weights of the files of data.train: positive numbers, one a file. Cuts then repeat as needed. Empty:
    each cut is drawn once an epoch."""
    epoch_cuts: Optional[int] = at_least(1, None)
    """Cuts drawn in an epoch when data.weights is given; null: as many as the files hold."""
    round_cuts: int = at_least(1, 50000)
    """An epoch is drawn in rounds of this many cuts; a resumed run draws one round again. With data.rank_parts the
    ranks share them: set about 20,000 times the number of ranks. Set it for the whole run: resumed with another value,
    it continues at the start of a round, and repeats cuts."""
    rank_parts: bool = False
    """Each rank reads its own part of each round, and draws its batches from it; for 32 ranks and more. Without it each
    rank reads and draws the batches of all ranks, which takes longer than a step from 33 GPUs on with 240 s a batch,
    from 67 on with 120 s (docs/scaling.md). Needs an index (`tokenverse-pp manifest index`) or Shar folders to start a
    part quickly. It changes the batches: set it for the whole run."""
    num_workers: int = at_least(0, 1)
    """Processes that load batches; 0: load in the training process."""
    min_seconds: float = at_least(0, 0.1)
    """Cuts shorter than this are left out, with a message that names them."""
    max_seconds: float = 30.0
    """Cuts longer than this are left out, with a message that names them; so are those longer than the encoder accepts
    (Whisper: 30 s)."""
    max_tokens: Optional[int] = at_least(1, None)
    """Cuts whose target is longer than this, with the tokens of all their tasks, are left out; null: no limit."""
    max_unk_share: float = share(0.01)
    """Largest share of target tokens that may be <unk>, because their characters are not in the vocabulary; above it
    the run stops. Checked before the first step (on the first 10,000 cuts) and after each round."""
    validate: bool = True
    """Check the labels of all cuts, and the audio of data.validate_audio of them, before training starts. The ranks
    share this work. A resumed run does not check the labels of data.train again, whose content must be the same."""
    validate_audio: Optional[int] = at_least(0, 20000)
    """Cuts of each file whose audio files (or stored features) are looked up by data.validate, evenly spread over the
    file; null: all. In a local Shar folder, the first cuts of so many shards. `tokenverse-pp manifest validate --audio`
    decodes all of them."""
    allow_commands: bool = False
    """Run shell commands that manifests name as sources of audio (docs/security.md)."""
    allow_urls: bool = False
    """Open URLs that manifests name as sources of audio (docs/security.md)."""


@dataclass
class TasksConfig:
    """Which tasks the model knows, and which are active for a training utterance."""

    names: List[str] = field(default_factory=lambda: ["asr"])
    """Tasks of the model, for example [asr, scd, endp, ner, lid]."""
    languages: List[str] = field(default_factory=list)
    """Language codes for the task lid, for example [en, fr]."""
    entity_types: List[str] = field(default_factory=list)
    """Entity types for the task ner; empty: untyped entities ([NE])."""
    plugins: List[str] = field(default_factory=list)
    """Python files or modules that define tasks (docs/new_task.md)."""
    settings: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    """Options of tasks that plugins define: {task: {option: value}}."""
    activation: Literal["labelled", "subset", "bernoulli"] = "labelled"
    """Which labelled tasks of an utterance are active in training. labelled: all of them. subset: a random subset.
    bernoulli: each with the probability tasks.activation_prob. They are drawn anew in each epoch, and each time that an
    epoch repeats a cut (data.weights)."""
    activation_prob: float = share(0.5)
    """Probability that a labelled task is active, with tasks.activation=bernoulli."""
    paired: bool = False
    """Train each cut twice in its batch: once with the tasks that tasks.activation gives, and once with its other
    labelled tasks (with labelled: once with all, once with asr alone). Both count towards data.max_duration,
    data.max_cuts and data.max_batch_tokens, so a batch has half as many cuts and an epoch twice as many batches."""
    full_only: bool = False
    """Train only on cuts that are labelled for every task, as TokenVerse (v1) does."""

    def options(self) -> Dict[str, Dict[str, Any]]:
        """Options by task, for `tokenverse_pp.tasks.build_tasks`."""
        return {"lid": {"languages": self.languages}, "ner": {"types": self.entity_types}, **self.settings}


@dataclass
class TokenizerConfig:
    """The SentencePiece tokenizer."""

    model: Optional[str] = None
    """An existing SentencePiece model file; null: train one on data.train."""
    vocab_size: int = at_least(3, 500)
    """Size of the vocabulary when a tokenizer is trained."""
    sentences: Optional[int] = at_least(1, None)
    """Cuts whose texts a tokenizer is trained on, from each file of data.train in the proportion in which training
    draws them (data.weights), spread over the file; those of a small file are repeated. null: all texts, each once,
    regardless of the weights."""


@dataclass
class VectorsConfig:
    """The task vectors of TokenVerse++."""

    placement: Literal["none", "features", "encoder", "both"] = "features"
    """Where the task vector is added. none: no task vectors. features: to the features at the seam of the encoder.
    encoder: to the output of the encoder. both: to both."""
    strategy: Literal["sum", "combination"] = "sum"
    """How the vector of an utterance is made. sum: one learnable vector a task, summed over the active tasks.
    combination: one learnable vector a combination of tasks."""
    code: Literal["binary", "centred"] = "binary"
    """strategy sum: how a task's vector enters the sum, a being 1 for an active task and 0 for any other. binary (the
    paper's form): a times the vector, so an inactive task adds nothing. centred: 2 a - 1 times the vector, so an
    inactive task subtracts it."""
    scale: float = 1.0
    """Factor on the task vectors, in training and decoding; the saved weights do not include it. It multiplies the
    effect of optim.vector_lr."""
    masked: Optional[bool] = None
    """placement features or both: true: the task vector is added before SpecAugment, whose masks cover it too. false:
    it is added after SpecAugment, as in releases without this option; a masked frame then contains only the vector, and
    the model learns to read the active tasks from such frames, which do not occur in decoding. null: true, or in a run
    that continues from a model (training.resume, training.init_from), as that model was trained."""
    registers: int = at_least(0, 0)
    """Number of frames of zeros before the features, in training and decoding. Attention reads the task vectors there;
    their output is dropped. In chunks they belong to the first chunk and stay visible, as sinks do. A multiple of
    encoder.stack; needs placement features or both, and encoder.kind split or frozen. A model trained with
    spec_augment.fill=zero may use them without further training, as the packaged model does with 10."""


@dataclass
class LossConfig:
    """The pruned RNN-T loss (Kuang et al., 2022); defaults as in icefall's zipformer recipe."""

    backend: Literal["auto", "native", "triton", "torch", "k2"] = "auto"
    """Implementation of the loss. auto: Triton kernels on an NVIDIA GPU, or k2 if Triton does not work there; PyTorch
    elsewhere. native: the same without k2. triton, torch, k2: that one."""
    prune_range: int = at_least(2, 5)
    """Symbols kept for each frame by the pruned loss."""
    lm_scale: float = share(0.25)
    """Weight of the predictor-only probabilities in the smoothed simple loss."""
    am_scale: float = share(0.0)
    """Weight of the encoder-only probabilities in the smoothed simple loss."""
    rnnt_type: Literal["regular", "modified", "constrained"] = "regular"
    """Topology of the lattice: regular (several symbols a frame), modified (at most one symbol a frame) or constrained
    (as in k2)."""
    delay_penalty: float = at_least(0, 0.0)
    """Penalty on symbols that are emitted late, in both losses."""
    simple_scale: float = at_least(0, 0.5)
    """Weight of the simple loss after warm-up."""
    ctc_scale: float = at_least(0, 0.0)
    """Weight of an auxiliary CTC loss on the encoder output; helps encoders with random weights."""
    warm_steps: int = 2000
    """Warm-up steps: the weight of the simple loss goes from 1 to simple_scale, that of the pruned loss from 0.1 to 1.
    With training.init_from the default is 1."""


@dataclass
class StreamingConfig:
    """Multi-chunk training: the chunk options are drawn at random for each batch."""

    chunk_ms: List[int] = field(default_factory=list)
    """Chunk lengths in milliseconds to draw from; 0: full context. Empty: always full context."""
    left_chunks: List[int] = field(default_factory=lambda: [-1])
    """Numbers of left chunks that a frame sees, to draw from; -1: all."""
    sinks: List[int] = field(default_factory=lambda: [0])
    """Numbers of attention sinks (first frames that stay visible), to draw from."""
    strict: bool = True
    """Cut the right side of convolutions at the end of the chunk, as streaming does."""


@dataclass
class ModelConfig:
    """The network: encoder, task vectors, predictor and joiner."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    transducer: Literal["new", "pretrained"] = "new"
    """Predictor, joiner and vocabulary. new: new weights, and a vocabulary as tokenizer says. pretrained: those of the
    checkpoint encoder.name (Parakeet RNN-T or TDT, Nemotron), with rows added for the tokens of the tasks and for
    characters of data.train missing from its vocabulary. Needs encoder.kind=finetune. Of the options below, all but
    context_size and predictor_dropout then come from the checkpoint (docs/encoders.md)."""
    predictor_layers: int = between(0, MOST_PREDICTOR_LAYERS, 0)
    """Layers of an LSTM predictor, which remembers all tokens. 0: the predictor is stateless."""
    predictor_dim: int = at_least(1, 512)
    """Embedding dimension of the predictor, and width of an LSTM."""
    context_size: int = at_least(1, 2)
    """Previous tokens that the stateless predictor sees."""
    joiner_dim: int = at_least(1, 512)
    """Inner dimension of the joiner."""
    joiner_activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the joiner."""
    symbols_per_frame: int = between(1, 100, 1)
    """Most symbols that greedy search emits per frame. Beam search emits at most one, full_beam up to max_symbols."""
    predictor_dropout: float = share(0.0)
    """Dropout on the embedding of the predictor."""


@dataclass
class OptimConfig:
    """AdamW with three learning rates and one schedule."""

    lr: float = at_least(0, 1e-3)
    """Learning rate of all parameters without their own rate; with training.init_from the default is 5e-4."""
    encoder_lr: float = at_least(0, 1e-4)
    """Learning rate of the pretrained encoder; with training.init_from the default is 5e-5."""
    # Task vectors start at zero and are added to frames of norm sqrt(dimension): at 1e-3 they reached 3% of it in 4500
    # steps of recipes/human_speech, and the model ignored them.
    vector_lr: float = at_least(0, 1e-2)
    """Learning rate of the task vectors; with training.init_from the default is 5e-3."""
    layer_decay: float = 1.0
    """Factor on the encoder's learning rate for each layer below the highest one that runs (encoder.layers)."""
    weight_decay: float = at_least(0, 0.01)
    """Weight decay, not applied to biases, norms and task vectors."""
    warmup_steps: int = 500
    """Steps over which the learning rates rise linearly to their values; with training.init_from the default is 20."""
    decay: Literal["constant", "inverse_sqrt", "cosine"] = "cosine"
    """Schedule after warm-up: constant, inverse_sqrt, or cosine (to zero at training.max_steps)."""
    clip: float = 5.0
    """Largest norm of the gradient."""


@dataclass
class TrainingConfig:
    """The training run: length, precision, checkpoints and validation."""

    exp_dir: str = "exp"
    """Folder of the run: checkpoints, logs and the final model. May be a URL (docs/object_storage.md): the run then
    works in a local folder, which is uploaded after each checkpoint."""
    storage: Literal["shared", "local"] = "shared"
    """Where training.exp_dir is when several machines train (docs/cluster.md). shared: all of them see the same folder,
    which rank 0 writes. local: each has its own folder, to which its first process writes all that rank 0 would; a
    machine that joins without the latest checkpoint gets it from the others."""
    epochs: int = at_least(1, 1000000)
    """Number of epochs; training ends at training.epochs or training.max_steps, whichever comes first."""
    max_steps: int = at_least(1, 10000)
    """Number of optimiser steps."""
    accumulate: int = at_least(1, 1)
    """Batches per optimiser step and rank (gradient accumulation)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number type of autocast: fp32 (no autocast), bf16 or fp16."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How ranks share the model. ddp: each holds the whole model. fsdp: each holds a part of the weights, gradients and
    moments."""
    seed: int = 42
    """Seed of the data order, the initial weights and dropout."""
    log_every: int = at_least(1, 50)
    """Steps between two log lines."""
    valid_every: int = at_least(1, 500)
    """Steps between two validations."""
    valid_first: bool = False
    """Also validate before the first step: this scores the model that the run starts from, which then counts among the
    checkpoints of training.keep_best."""
    save_every: int = at_least(1, 500)
    """Steps between two checkpoints."""
    keep_last: int = at_least(1, 5)
    """Number of latest checkpoints that are kept."""
    keep_best: int = at_least(0, 0)
    """Number of best checkpoints (by training.best_by) kept besides the latest; each validation then writes one."""
    best_by: Literal["loss", "wer"] = "loss"
    """Score that selects the best checkpoints: loss or wer, on the cuts of data.valid."""
    patience: int = at_least(0, 0)
    """Stop early after this many validations in a row that are no better (by training.best_by) than the best before
    them. Each validation then writes a checkpoint, and the final model is the best one, or the mean of the
    training.keep_best best ones. 0: never."""
    average_last: int = at_least(1, 5)
    """Latest checkpoints averaged into the final model, without that of step 0; at most training.keep_last."""
    average_period: int = at_least(0, 0)
    """Steps between updates of a running average of the weights; 0: no running average."""
    resume: Union[bool, str] = "auto"
    """auto: resume from the latest intact checkpoint in training.exp_dir, or start anew if there is none. true: resume
    from the latest, which must exist and be intact. false: start anew; there must be no checkpoint. A path: resume from
    the checkpoint in this folder."""
    allow_changed_data: bool = False
    """Resume even if the files of data.train have changed."""
    max_bad_steps: int = at_least(1, 20)
    """Consecutive steps with a loss or gradient that is not finite before the run stops."""
    init_from: Optional[str] = None
    """Model to take initial weights from: a folder, the name of a packaged model or an id on the Hugging Face hub.
    Options of model, and the tasks, that are not given are then taken from it, and the learning rates are half of their
    usual defaults (optim). Tasks and languages that it does not have are added (docs/transfer.md)."""
    train_only: Literal["all", "new", "new_and_joiner"] = "all"
    """Which parameters are trained. all: all of them. new: only those that training.init_from did not have (rows of new
    tokens, new task vectors). new_and_joiner: those and the joiner."""
    new_below_mean: Optional[float] = None
    """With training.init_from: the nats by which the logit of a new token starts below the mean of the old ones. 10
    keeps the scores of old tokens, but training needs some hundred steps to make up for it. Use 0 for frequent tokens
    (punctuation). Default: 1 with train_only all, else 10."""
    freeze: List[List[int]] = field(default_factory=list)
    """Schedule of [step, n] pairs: from that step on, the top n layers of the encoder are trained (0: none; -1: all
    that model.encoder does not freeze). Empty: all from the start."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile (torch 2.1 or later, and a compiler: Triton on a GPU, g++ on a
    CPU). The first steps take longer. It changes the random numbers of dropout."""
    memory_gb: Optional[float] = at_least(0.1, None)
    """GPU memory in GB (2**30 bytes) per rank that model.encoder.checkpoint_layers=auto may fill; null: 90% of it."""
    scan: bool = False
    """Run the largest batches before the first step, to find out whether memory suffices."""
    peer_timeout: float = at_least(5, 60.0)
    """Seconds without a sign of life after which another rank counts as dead."""
    threads: int = at_least(0, 0)
    """CPU threads of each process; 0: as OMP_NUM_THREADS says (except the 1 that torchrun sets), else 1 for models of
    less than 50 M parameters and the physical cores, shared by the ranks of a machine, for larger ones."""


@dataclass
class Config:
    """The complete configuration. Its resolved form is saved with every model."""

    data: DataConfig = field(default_factory=DataConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
