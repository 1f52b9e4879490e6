"""What an Edit keeps of a source in `AudioLDM2.generate`."""

import pytest
import torch

from audioldm2_pl.conditioning import encode_requests
from audioldm2_pl.editing import Edit, Grid, start_of
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.models.vae import latent_of
from audioldm2_pl.pipeline import AudioLDM2

SAMPLING = Sampling(num_steps=4, eta=1.0)
REQUESTS = [Generation("a bell", seed=3), Generation("rain", seed=4)]


@pytest.fixture(scope="module")
def model(smoke_run) -> AudioLDM2:
    return AudioLDM2.from_pretrained(smoke_run.model_folder)


@pytest.fixture(scope="module")
def source(model) -> torch.Tensor:
    """Latents of two clips of noise."""
    waveform = torch.randn(2, 40_960, generator=torch.Generator().manual_seed(0)) * 0.1
    return latent_of(model.vae, model.log_mel(waveform), sample=False)


def test_a_kept_region_is_the_sources_and_the_other_is_new(model, source):
    keep = torch.ones(1, 1, source.shape[2], 1)
    keep[:, :, 8:16] = 0  # latent frames that are sampled anew
    edited = model.generate_latent(REQUESTS, SAMPLING, Edit(source, keep))
    assert torch.equal(edited[:, :, :8], source[:, :, :8]) and torch.equal(edited[:, :, 16:], source[:, :, 16:])
    assert (edited - source)[:, :, 8:16].std() > 0.1
    assert torch.equal(model.generate_latent(REQUESTS, SAMPLING, Edit(source, keep)), edited)
    both = torch.cat([keep, 1 - keep])  # a mask a clip
    swapped = model.generate_latent(REQUESTS, SAMPLING, Edit(source, both))
    torch.testing.assert_close(swapped[0], edited[0])
    assert torch.equal(swapped[1, :, 8:16], source[1, :, 8:16])


def test_a_low_start_timestep_stays_near_the_source(model, source):
    sampling = Sampling(num_steps=50, eta=0.0, guidance_scale=1.0)
    near, far = (model.generate_latent(REQUESTS, sampling, Edit(source, start_timestep=t)) for t in (40, 700))
    assert (near - source).std() < 0.5 * (far - source).std()


def test_candidates_and_batches_have_their_own_rows_of_an_edit(model, source):
    edit = Edit(source, torch.ones(source.shape[2], 1))
    three = model.generate_latent(REQUESTS, Sampling(num_steps=1, candidates=3), edit)
    assert torch.equal(three, source.repeat_interleave(3, dim=0))
    one_for_all = Edit(source[:1], torch.ones(1))
    many = model.generate_latent([Generation("rain")] * 2, Sampling(num_steps=1, candidates=9), one_for_all)
    assert torch.equal(many, source[:1].expand(18, -1, -1, -1))


def test_an_edit_gives_the_length(model, source):
    edit = Edit(source[:1, :, :16], torch.ones(1))
    assert model.generate("rain", num_steps=1, edit=edit).shape == (1, 16 * 1280)
    assert model.generate("rain", num_steps=1, edit=edit, seconds=1.25).shape == (1, 20_000)
    with pytest.raises(UserError, match="clip is 32 latent frames long, but the edit's source has 16"):
        model.generate("rain", num_steps=1, edit=edit, seconds=2.5)


def test_bad_edits_are_plain_errors(model, source):
    for given in ({"keep": torch.ones(1)}, {"start_timestep": 5}):
        with pytest.raises(UserError, match="needs the source's latent"):
            Edit(**given)
    with pytest.raises(UserError, match=r"edit\.latent: 2 for 3 prompts"):
        model.generate(["a"] * 3, edit=Edit(source, start_timestep=500), num_steps=2)
    loa = torch.zeros(1, 8, 32)
    with pytest.raises(UserError, match="give one of them"):
        model.generate("a", loa=loa, edit=Edit(loa_prefix=loa))


def test_an_edit_of_other_shapes_than_the_models_is_a_plain_error(model, source):
    num_channels, num_bins = source.shape[1], source.shape[3]
    for latent in (source[:, :-1], source[..., :-1], source.flatten(2), source[None]):
        with pytest.raises(UserError, match=rf"edit\.latent: .*the model's is \(B, {num_channels}, H, {num_bins}\)"):
            model.generate(["a", "b"], edit=Edit(latent, start_timestep=500), num_steps=2)
    for keep in (torch.ones(3, 1, 1, 1), torch.ones(source.shape[2] - 1, 1), torch.ones(1, 1, 1, 1, 1)):
        with pytest.raises(UserError, match=r"edit\.keep: its shape .* does not broadcast"):
            model.generate(["a", "b"], edit=Edit(source, keep), num_steps=2)
    with pytest.raises(UserError, match=r"edit\.loa_prefix: .*the model's is \(B, L', 32\)"):
        model.generate("a", edit=Edit(loa_prefix=torch.zeros(1, 8, 31)), num_steps=2)


def test_generation_reads_the_loa_prefix(model):
    prefix = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    conditions = model.encode_conditions([r.prompt for r in REQUESTS])
    loa = model.generate_loa(conditions, prefix)
    assert torch.equal(loa[:, :3], prefix.expand(2, -1, -1))
    inputs = encode_requests(model, REQUESTS, SAMPLING, Edit(loa_prefix=prefix))
    assert torch.equal(inputs.conditions[0].embedding, loa)
    edited = model.generate(REQUESTS, sampling=SAMPLING, edit=Edit(loa_prefix=prefix))
    torch.testing.assert_close(edited, model.generate(REQUESTS, sampling=SAMPLING, loa=loa))


def test_a_loa_suffix_takes_the_last_vectors(model):
    suffix = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
    plain = encode_requests(model, REQUESTS, SAMPLING).conditions[0].embedding
    ended = encode_requests(model, REQUESTS, SAMPLING, Edit(loa_suffix=suffix)).conditions[0].embedding
    assert torch.equal(ended[:, :-2], plain[:, :-2]) and torch.equal(ended[:, -2:], suffix.expand(2, -1, -1))


def test_the_authors_start_lies_one_step_of_the_grid_below_the_noise():
    # strength 0.5 of 200 steps: noised to timestep 501, sampled from 496 (AudioLDM's style_transfer)
    assert start_of(0.5, 200, 1000, "official") == 496
    assert start_of(0.5, 200, 1000) == 499 and start_of(1.0, 200, 1000) == 999
    # 150 steps do not divide 1000: the authors' grid has a spacing of 6 and counts 75 steps of it
    assert start_of(0.5, 150, 1000, "official") == 6 * 74 + 1
    for strength, num_steps in ((1.0, 200), (0.001, 200)):
        with pytest.raises(UserError, match="official mode needs 1 to 199 steps"):
            start_of(strength, num_steps, 1000, "official")


def test_spans_and_bins_lie_on_the_latent_grid():
    grid = Grid(256, 25.0, [500.0, 1000.0, 4000.0, 8000.0])
    assert grid.span(4.0, 6.0) == (100, 150) and grid.span(4.01, 4.05) == (100, 102)
    assert grid.span(10.0, 99.0) == (250, 256) and grid.span(50.0, 60.0) == (256, 256)
    keep = grid.keep_outside([(0.0, 1.0), (2.0, 3.0)])
    assert keep.shape == (256, 4) and keep[:25].sum() == 0 and keep[25:50].all() and not keep[50:75].any()
    below = grid.keep_below(4000.0)
    assert below[:, :3].all() and not below[:, 3:].any()
