"""AudioMAE: masking, the decoder's order, and how LOA is read off and pooled."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig, num_loa_vectors, pool_loa, sincos_positions

torch.set_num_threads(1)
SMALL = AudioMAEConfig(
    num_frames=160, num_bins=64, embed_dim=32, depth=4, num_heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2
)  # 10 × 4 patches
NUM_PATCHES = 40


def build(**changes) -> AudioMAE:
    torch.manual_seed(0)
    return AudioMAE(replace(SMALL, **changes)).eval()


@pytest.fixture
def fbank() -> torch.Tensor:
    return torch.randn(2, 1, 160, 64, generator=torch.Generator().manual_seed(1))


def test_published_size_and_names():
    with torch.device("meta"):
        audiomae = AudioMAE(AudioMAEConfig())
    assert audiomae.grid == (64, 8)
    shapes = {name: tuple(value.shape) for name, value in audiomae.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (768, 1, 16, 16)
    assert shapes["pos_embed"] == (1, 513, 768)
    assert shapes["cls_token"] == (1, 1, 768)
    assert shapes["blocks.0.attn.qkv.weight"] == (2304, 768)
    assert shapes["blocks.11.mlp.fc1.weight"] == (3072, 768)
    assert shapes["norm.weight"] == (768,)
    encoder = sum(np.prod(s) for name, s in shapes.items() if not name.startswith("decoder") and name != "mask_token")
    assert encoder == 85_648_128  # ViT-B with one input channel and 513 positions


@pytest.mark.parametrize("ratio", [0.5, 0.7, 0.8])
def test_the_masked_share_is_exact(ratio, fbank):
    encoded, mask, restore = build(mask_ratio=ratio).forward_encoder(fbank)
    num_kept = round(NUM_PATCHES * (1 - ratio))
    assert encoded.shape == (2, 1 + num_kept, 32)
    assert mask.sum(1).tolist() == [NUM_PATCHES - num_kept] * 2
    assert torch.equal(restore.sort(1).values, torch.arange(NUM_PATCHES).expand(2, -1))
    assert not torch.equal(mask[0], mask[1])


def test_masked_patches_do_not_reach_the_encoder(fbank):
    fbank.requires_grad_()
    encoded, mask, _ = build().forward_encoder(fbank)
    encoded.square().sum().backward()
    assert fbank.grad is not None
    reached = fbank.grad.reshape(2, 10, 16, 4, 16).abs().amax((2, 4)).flatten(1) > 0  # (B, P)
    assert torch.equal(reached, mask == 0)


def test_the_encoder_keeps_the_first_of_the_shuffled(fbank):
    audiomae = build()
    audiomae.blocks = torch.nn.ModuleList()
    encoded, _, restore = audiomae.forward_encoder(fbank)
    order = restore.argsort(1)[:, : encoded.shape[1] - 1]
    patches = audiomae.norm(audiomae.embed(fbank))
    for clip in range(2):
        torch.testing.assert_close(encoded[clip, 1:], patches[clip, order[clip]])


def decoder_input(audiomae: AudioMAE, encoded: torch.Tensor, restore: torch.Tensor) -> torch.Tensor:
    """What the decoder's blocks see, less the positions: (B, P, decoder dim)."""
    seen = {}
    audiomae.decoder_blocks[0].register_forward_pre_hook(lambda _, arguments: seen.update(x=arguments[0]))
    audiomae.forward_decoder(encoded, restore)
    return (seen["x"] - audiomae.decoder_pos_embed)[:, 1:]


def test_the_decoder_puts_patches_back_in_order():
    audiomae = build()
    encoded = torch.randn(2, 9, 32)
    embedded = audiomae.decoder_embed(encoded)[:, 1:]
    identity = torch.arange(NUM_PATCHES).expand(2, -1)
    shuffle = torch.stack([torch.randperm(NUM_PATCHES) for _ in range(2)])
    for order in (identity, identity.flip(1), shuffle):
        seen = decoder_input(audiomae, encoded, order.argsort(1))
        for clip in range(2):
            torch.testing.assert_close(seen[clip, order[clip, :8]], embedded[clip], atol=1e-6, rtol=1e-6)
            hidden = seen[clip, order[clip, 8:]]
            torch.testing.assert_close(hidden, audiomae.mask_token[0].expand_as(hidden), atol=1e-6, rtol=1e-6)


def test_the_loss_counts_masked_patches_only(fbank):
    audiomae = build(normalise_patches=False)
    mask = torch.zeros(2, NUM_PATCHES)
    mask[:, 3] = 1  # first patch in time, last in frequency
    predicted = torch.zeros(2, NUM_PATCHES, 256)
    expected = fbank[:, 0, :16, 48:].square().mean()
    torch.testing.assert_close(audiomae.forward_loss(fbank, predicted, mask), expected)
    predicted[:, 3] = fbank[:, 0, :16, 48:].flatten(1)
    assert audiomae.forward_loss(fbank, predicted, mask) == 0


def test_normalised_patches_have_no_level(fbank):
    audiomae = build()
    predicted, mask = torch.randn(2, NUM_PATCHES, 256), torch.ones(2, NUM_PATCHES)
    expected = audiomae.forward_loss(fbank, predicted, mask)
    torch.testing.assert_close(audiomae.forward_loss(fbank * 3 + 5, predicted, mask), expected, atol=1e-4, rtol=1e-4)


def naive_pool(grid: torch.Tensor, pooling: int) -> torch.Tensor:
    height, width = pooling, min(pooling, grid.shape[2])
    vectors = []
    for row in range(0, grid.shape[1], height):
        for column in range(0, grid.shape[2], width):
            cell = grid[:, row : row + height, column : column + width].flatten(1, 2)  # (B, cells, D)
            vectors.append((cell.mean(1) + cell.amax(1)) / 2)
    return torch.stack(vectors, dim=1)


@pytest.mark.parametrize(("pooling", "num_vectors"), [(1, 512), (2, 128), (4, 32), (8, 8), (16, 4)])
def test_pooling_of_the_full_grid(pooling, num_vectors):
    grid = torch.randn(2, 64, 8, 6)
    loa = pool_loa(grid, pooling)
    assert loa.shape == (2, num_vectors, 6)
    assert num_loa_vectors(AudioMAEConfig(), pooling) == num_vectors
    torch.testing.assert_close(loa, naive_pool(grid, pooling))


def test_without_pooling_loa_is_the_grid_time_major():
    grid = torch.randn(1, 10, 4, 6)
    assert torch.equal(pool_loa(grid, 1), grid.flatten(1, 2))


def layer_outputs(audiomae: AudioMAE, fbank: torch.Tensor) -> list[torch.Tensor]:
    """Every block's normed output without CLS, as (B, T', F', D)."""
    positions = sincos_positions(32, 10, 4)
    patches = torch.nn.functional.conv2d(
        fbank, audiomae.patch_embed.proj.weight, audiomae.patch_embed.proj.bias, stride=16
    ).permute(0, 2, 3, 1)  # (B, T', F', D)
    x = patches.reshape(2, NUM_PATCHES, 32) + positions[1:]
    x = torch.cat([audiomae.cls_token.expand(2, -1, -1), x], dim=1)
    outputs = []
    for block in audiomae.blocks:
        x = block(x)
        outputs.append(audiomae.norm(x)[:, 1:].reshape(2, 10, 4, 32))
    return outputs


@pytest.mark.parametrize("loa_layers", [1, 3, 16])
def test_features_average_the_last_layers(loa_layers, fbank):
    audiomae = build(loa_layers=loa_layers)
    outputs = layer_outputs(audiomae, fbank)[-loa_layers:]
    assert len(outputs) == min(loa_layers, 4)
    expected = sum(outputs) / len(outputs)
    features = audiomae.features(fbank)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(audiomae.loa(fbank, 2), naive_pool(expected, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(audiomae.loa(fbank[1:], 2), audiomae.loa(fbank, 2)[1:], atol=1e-5, rtol=1e-5)


def test_positions_are_the_two_dimensional_ones():
    positions = sincos_positions(32, 10, 4)
    assert positions.shape == (41, 32) and not positions[0].any()
    assert torch.cdist(positions, positions).add(10 * torch.eye(41)).min() > 0.1
    grid = positions[1:].view(10, 4, 32)
    # one half depends on the column alone, the other on the row alone
    assert (grid[..., :16] == grid[:1, :, :16]).all() and (grid[..., 16:] == grid[:, :1, 16:]).all()
    frequencies = 10_000.0 ** (-torch.arange(8) / 8)
    expected = torch.cat([torch.sin(3 * frequencies), torch.cos(3 * frequencies)])
    torch.testing.assert_close(grid[0, 3, :16], expected)
    torch.testing.assert_close(grid[3, 0, 16:], expected)


def test_a_smaller_base_sets_places_of_a_small_grid_further_apart():
    far, near = (sincos_positions(32, 16, 8, base)[1:].unflatten(0, (16, 8)) for base in (20.0, 10_000.0))
    step_far, step_near = ((p[1:, 0] - p[:-1, 0]).norm(dim=1).mean() for p in (far, near))
    assert step_far > 1.3 * step_near
    assert torch.equal(build(position_base=20.0).pos_embed[0], sincos_positions(32, 10, 4, 20.0))


def test_positions_are_not_trained():
    audiomae = build()
    frozen = {name for name, parameter in audiomae.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "decoder_pos_embed"}


def test_every_trained_weight_gets_a_gradient(fbank):
    audiomae = build()
    audiomae(fbank).backward()
    for name, parameter in audiomae.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), name


def test_overfits_one_batch():
    audiomae = build(mask_ratio=0.5).train()
    rows = torch.sin(torch.arange(160) / 3.0)[:, None] * torch.linspace(-1, 1, 64)
    fbank = torch.stack([rows, rows.flip(0)])[:, None]
    optimizer = torch.optim.Adam(audiomae.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        torch.manual_seed(0)  # one mask, too
        loss = audiomae(fbank)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
