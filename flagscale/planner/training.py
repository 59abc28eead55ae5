"""A job of training as the planner sees it: the model, how it is divided, the chips, what each step does."""

from __future__ import annotations

from flagscale.checks.hetero.layout import HeteroLayout, Stage
from flagscale.checks.recompute import RecomputeSchedule, Setting
from flagscale.frozen import dataclass
from flagscale.planner.chips import Chip, Link
from flagscale.planner.model_shape import ModelShape


@dataclass(frozen=True)
class Block:
    """The chip and the settings of the ranks of a mesh, beside its degrees. An ordinary job has one mesh."""

    chip: Chip
    micro_batch: int
    """Samples."""
    expert_tp: int = 1
    sequence_parallel: bool = False
    per_node: int = 8
    """Ranks on one host, neighbours in the order of ranks."""


@dataclass(frozen=True)
class Numerics:
    """Precisions and the optimizer: what decides the bytes per parameter."""

    compute: str = "bfloat16"
    """bfloat16, float16, float32, fp8 or fp4: of the large multiplications."""
    parameter_bytes: float = 2
    gradient_bytes: float = 4
    """Of the buffer in which gradients are summed and reduced."""
    state_bytes: float = 12
    """Of the optimizer, per parameter that it updates: its copy of the parameter and its moments."""
    distributed: bool = False
    """Whether the optimizer's states are divided over the copies of the model."""
    instances: int = 1
    """Of the divided states (`num_distributed_optimizer_instances`)."""


@dataclass(frozen=True)
class Recompute:
    """The work that is done twice: `modules` of every layer, or whole layers as `full` says."""

    modules: tuple[str, ...] = ()
    full: Setting | None = None
    schedule: RecomputeSchedule | None = None
    """Per stage and micro-batch; overrides `full`."""


@dataclass(frozen=True)
class Training:
    """The input of every estimate."""

    model: ModelShape
    layout: HeteroLayout
    """One mesh if the job is an ordinary one."""
    blocks: tuple[Block, ...]
    """One for each mesh of the layout."""
    sequence: int
    """Tokens per sample."""
    batch: int
    """Samples per step, over all ranks."""
    padded_vocabulary: int
    numerics: Numerics = Numerics()
    implementation: str = "transformer_engine"
    """transformer_engine, torch or local."""
    recompute: Recompute = Recompute()
    prediction_chunk: int | None = None
    """The model chunk, in the order of layers, that has the prediction heads; None: the last one."""
    capacity: float | None = None
    """Tokens that an expert takes, relative to a balanced share; None: no limit, balanced is assumed."""
    overlap_gradients: bool = False
    overlap_parameters: bool = False
    overlap_tensor: bool = False
    overlap_experts: bool = False
    """Whether the exchange of tokens between experts hides behind the computation of another micro-batch."""
    captured: tuple[str, ...] = ()
    """The modules whose kernels a CUDA graph starts: those of `CAPTURED` (layer_time.py); `full_iteration`:
    all of both passes."""
    overlap_pipeline: bool = True
    group: int = 0
    """Micro-batches that an interleaved pipeline computes in one chunk before the next; 0: one per stage."""
    deterministic: bool = False
    """Whether results are reproducible: `deterministic_mode`, which asks for large workspaces."""
    fused_gradients: bool = True
    """Whether weight gradients are added to their buffer by the multiplication itself."""
    fused_loss: bool = False
    """Whether the loss is a fused kernel, the engine's own or TransformerEngine's."""
    loss_in_place: bool = False
    """Whether the gradients of the logits take the place of the logits, as in TransformerEngine's loss."""
    fused_activation: bool = True
    """Whether the activation of an MLP is one kernel, which keeps its input only."""
    grouped_experts: bool = True
    """Whether the experts of a rank are multiplied as groups (`moe_grouped_gemm`)."""
    fused_softmax: bool = True
    """Whether the `local` layers have a kernel for the softmax of attention (`masked_softmax_fusion`)."""
    stores_scores: bool = False
    """Whether attention stores its scores for all pairs of tokens: TransformerEngine's `unfused` backend."""
    loads_mask: bool = False
    """Whether a micro-batch holds a mask of all pairs of tokens (`create_attention_mask_in_dataloader`)."""
    exchange: str = "p2p"
    """How context parallel ranks share keys and values: p2p, a2a, all_gather or a2a+p2p (`cp_comm_type`)."""
    exchange_ranks: int = 0
    """Context parallel ranks that exchange heads with a2a+p2p; 0: all of them."""
    crossings: tuple[Link, ...] = ()
    """Between each mesh and the next one, if that link is known and slower than those of their chips."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each copy of the model per step."""
        return self.batch // (self.layout.meshes[0].dp * self.blocks[0].micro_batch)

    def position(self, stage: Stage, chunk: int) -> int:
        """Return the number of a model chunk of a stage in the order of layers."""
        return chunk * len(self.layout.stages) + stage.index

    @property
    def last_position(self) -> int:
        """The number of the model chunk with the last norm, the output layer and the loss."""
        return len(self.layout.stages) * self.layout.chunks - 1

    @property
    def heads_position(self) -> int:
        """The number of the model chunk that has the prediction heads, if there are any."""
        return self.last_position if self.prediction_chunk is None else self.prediction_chunk

    def copies(self, stage: Stage) -> tuple[int, int]:
        """Return over how many ranks the gradients of dense weights, and those of experts, are reduced."""
        experts = self.blocks[stage.mesh].expert_tp * self.layout.meshes[stage.mesh].ep
        return stage.cp * stage.dp, max(1, len(stage.ranks) // experts)

    def chunk_layers(self, stage: Stage, chunk: int) -> range:
        """Return the numbers, in the order of the model, of the layers of one chunk of a stage."""
        stages = self.layout.stages
        before = sum(sum(one.chunks[number] for one in stages) for number in range(chunk))
        first = before + sum(one.chunks[chunk] for one in stages[: stage.index])
        return range(first, first + stage.chunks[chunk])
