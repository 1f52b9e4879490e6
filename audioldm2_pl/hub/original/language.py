"""What generates LOA: the authors' `Sequence2AudioMAE` => GPT-2 and diffusers' `AudioLDM2ProjectionModel`."""

from diffusers import AudioLDM2ProjectionModel  # pyright: ignore[reportPrivateImportUsage]
from transformers import GPT2Config, GPT2LMHeadModel

from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count, renamed

HEAD_CHANNELS = 64  # of one head of GPT-2

POSITIONS = "learnable_positional_embedding"  # of phonemes, (1, D, L)
# Tables of sequence marks, one row a condition. The authors' have 32 rows, two of which are used.
MARKS = {"start_of_sequence_tokens.weight": "sos_embed", "end_of_sequence_tokens.weight": "eos_embed"}

PROJECTION = (
    (r"^input_sequence_embed_linear\.0\.", "projection."),
    (r"^input_sequence_embed_linear\.1\.", "projection_1."),
)


def build_gpt2(weights: Weights, num_loa_vectors: int) -> tuple[GPT2LMHeadModel, Moves]:
    """GPT-2 with the authors' vocabulary. The causal masks that old versions of transformers stored are dropped."""
    vocabulary, width = weights["model.wte.weight"].shape
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=width,
            n_positions=weights["model.wpe.weight"].shape[0],
            n_layer=count(weights, r"model\.h\.(\d+)\."),
            n_head=max(1, width // HEAD_CHANNELS),
            bos_token_id=min(50256, vocabulary - 1),
            eos_token_id=min(50256, vocabulary - 1),
        )
    )
    gpt2.config.max_new_tokens = num_loa_vectors  # where the hub's pipeline looks for the length of LOA
    return gpt2, renamed(weights, [(r"^model\.", "transformer.")])


def build_projection(weights: Weights) -> tuple[AudioLDM2ProjectionModel, Moves]:
    """Two linear maps into GPT-2's width and the marks around each condition.

    The positions that the phoneme encoder learns, POSITIONS, belong to the projection in diffusers.
    """
    first, second = (weights[f"input_sequence_embed_linear.{i}.weight"].shape for i in range(2))
    positions = weights.get(POSITIONS)
    projection = AudioLDM2ProjectionModel(
        first[1],
        second[1],
        first[0],
        use_learned_position_embedding=None if positions is None else True,
        max_seq_length=None if positions is None else positions.shape[2],
    )

    def moves() -> Moves:
        for key, name, tensor in renamed(weights, PROJECTION):
            if key in MARKS:
                for i, suffix in enumerate(("", "_1")):
                    yield key, MARKS[key] + suffix, tensor[i]
            else:
                yield key, name, tensor

    return projection, moves()
