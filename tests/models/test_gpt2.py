"""GPT-2 that generates LOA: prefix, causality, cache, padding, and diffusers' own loop."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.gelu import fuse_gelu
from audioldm2_pl.models.gpt2 import LOAGenerator, LOAGPT2Config, build_gpt2
from audioldm2_pl.models.projection import ConditionProjection

torch.set_num_threads(1)
SMALL = LOAGPT2Config(hidden_size=32, num_layers=2, num_heads=2, num_positions=64, dropout=0.0)
NUM_VECTORS = 5
CLAP_DIM, T5_DIM = 12, 20


@pytest.fixture
def generator() -> LOAGenerator:
    torch.manual_seed(0)
    loa_generator = LOAGenerator(
        build_gpt2(SMALL, NUM_VECTORS), ConditionProjection({"clap": CLAP_DIM, "t5": T5_DIM}, SMALL.hidden_size)
    ).eval()
    with torch.no_grad():  # a fresh projection's marks are all ones
        for name, parameter in loa_generator.projection.named_parameters():
            if name.startswith(("sos", "eos")):
                parameter.normal_()
    return loa_generator


def conditions(*lengths: int) -> list[Condition]:
    """CLAP and T5 of prompts with so many T5 tokens, padded with noise to the longest."""
    draw = torch.Generator().manual_seed(sum(lengths))
    clap = torch.randn(len(lengths), 1, CLAP_DIM, generator=draw)
    t5 = torch.randn(len(lengths), max(lengths), T5_DIM, generator=draw)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return [Condition(clap, torch.ones(len(lengths), 1, dtype=torch.bool)), Condition(t5, mask)]


def one_of(batch: list[Condition], clip: int) -> list[Condition]:
    """One prompt of a batch without its padding."""
    clap, t5 = batch
    length = int(t5.mask[clip].sum())
    return [clap[clip], Condition(t5.embedding[clip : clip + 1, :length], t5.mask[clip : clip + 1, :length])]


def test_published_size():
    with torch.device("meta"):
        gpt2 = build_gpt2(LOAGPT2Config(), 8)
        projection = ConditionProjection({"clap": 512, "t5": 1024}, 768)
    assert sum(p.numel() for p in gpt2.transformer.parameters()) == 124_439_808 - 50_256 * 768  # GPT-2 less its words
    assert gpt2.config.max_new_tokens == 8 and gpt2.config.n_positions == 1024
    assert projection.projection.weight.shape == (768, 512) and projection.projection_1.weight.shape == (768, 1024)


def test_order_of_the_prefix(generator):
    clap, t5 = conditions(3)
    prefix = generator.prefix([clap, t5])
    p = generator.projection
    parts = [p.sos_embed[None], p.projection(clap.embedding[0]), p.eos_embed[None]]
    parts += [p.sos_embed_1[None], p.projection_1(t5.embedding[0]), p.eos_embed_1[None]]
    torch.testing.assert_close(prefix.embedding[0], torch.cat(parts))
    assert prefix.embedding.shape == (1, 8, 32) and prefix.mask.tolist() == [[1] * 8]


def test_the_projection_equals_that_of_diffusers(tmp_path):
    for names, num_phonemes in ((("clap", "t5"), None), (("clap", "phonemes"), 5)):
        widths = dict(zip(names, (CLAP_DIM, T5_DIM)))
        ours = ConditionProjection(widths, 32, num_phonemes)
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter)
        ours.save_pretrained(tmp_path / names[1])
        theirs = AudioLDM2ProjectionModel.from_pretrained(tmp_path / names[1])
        clap, text = conditions(2, 5)
        expected = theirs(clap.embedding, text.embedding, clap.mask.long(), text.mask.long())
        prefix = ours([clap, text])
        assert torch.equal(prefix.embedding, expected.hidden_states)
        assert torch.equal(prefix.mask, expected.attention_mask)
        theirs.save_pretrained(tmp_path / "stock")
        assert ConditionProjection.from_pretrained(tmp_path / "stock").condition_widths == widths


@pytest.mark.parametrize("names", [("t5",), ("clap",), ("clap", "t5", "image")])
def test_any_number_of_conditions(names, tmp_path):
    widths = {name: 3 + index for index, name in enumerate(names)}
    projection = ConditionProjection(widths, 32)
    projection.save_pretrained(tmp_path)
    opened = ConditionProjection.from_pretrained(tmp_path)
    assert opened.conditions == list(names)
    given = [Condition.of(torch.randn(2, 4, width)) for width in widths.values()]
    prefix = opened(given)
    assert torch.equal(prefix.embedding, projection(given).embedding)
    assert prefix.embedding.shape == (2, 6 * len(names), 32) and prefix.mask.all()
    given[0].mask[1] = False  # absent in the second clip: its SOS and EOS are masked too
    assert opened(given).mask.sum(1).tolist() == [6 * len(names), 6 * len(names) - 6]
    with pytest.raises(ValueError, match="conditions, got"):
        opened(given[1:])


def test_mask_and_positions_of_a_padded_prefix(generator):
    given = conditions(2, 4)
    mask, positions = generator.prefix(given).mask, generator.positions(given, 2)
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0, 1], [1] * 9]
    assert positions[0, :9][mask[0] == 1].tolist() == list(range(7)) and positions[0, 9:].tolist() == [7, 8]
    assert positions[1].tolist() == list(range(11))


def test_phonemes_that_are_absent_leave_no_trace(generator):
    """Beside captions: a clip without a transcript has the LOA that GPT-2 generates without the condition."""
    projection = ConditionProjection({"clap": CLAP_DIM, "t5": T5_DIM, "phonemes": 8}, 32, num_phonemes=6)
    projection.load_state_dict(generator.projection.state_dict(), strict=False)
    torch.nn.init.normal_(projection.learnable_positional_embedding)
    projection.eos_embed_2 = projection.eos_embed_1  # the last EOS asks for the first vector, read by others or not
    speaking = LOAGenerator(generator.gpt2, projection).eval()
    given = conditions(2, 4)
    phonemes = Condition(torch.randn(2, 6, 8), torch.tensor([[False] * 6, [True] * 3 + [False] * 3]))
    with torch.no_grad():
        without, spoken = generator.generate(given), speaking.generate([*given, phonemes])
        torch.testing.assert_close(spoken[0], without[0], atol=1e-5, rtol=0)
        assert not torch.allclose(spoken[1], without[1], atol=1e-2)
        slow = speaking.generate([*given, phonemes], use_cache=False)
        forced = speaking.teacher_forced([*given, phonemes], spoken)
    torch.testing.assert_close(slow, spoken, atol=1e-5, rtol=0)
    torch.testing.assert_close(forced, spoken, atol=1e-5, rtol=0)


def test_a_vector_sees_only_those_before_it(generator):
    loa = torch.randn(2, NUM_VECTORS, 32, requires_grad=True)
    output = generator.teacher_forced(conditions(2, 4), loa)
    assert output.shape == loa.shape
    for step in range(NUM_VECTORS):
        (gradient,) = torch.autograd.grad(output[:, step].square().sum(), loa, retain_graph=True)
        reached = gradient.abs().amax((0, 2)) > 0
        assert reached.tolist() == [i < step for i in range(NUM_VECTORS)]


def test_every_vector_sees_the_conditions(generator):
    clap, t5 = conditions(3)
    clap.embedding.requires_grad_()
    t5.embedding.requires_grad_()
    output = generator.teacher_forced([clap, t5], torch.randn(1, NUM_VECTORS, 32))
    for step in range(NUM_VECTORS):
        gradients = torch.autograd.grad(
            output[:, step].square().sum(), [clap.embedding, t5.embedding], retain_graph=True
        )
        assert all((gradient.abs().amax(2) > 0).all() for gradient in gradients)


@torch.no_grad()
def test_the_cache_changes_nothing(generator):
    batch = conditions(2, 4, 3)
    cached = generator.generate(batch)
    assert cached.shape == (3, NUM_VECTORS, 32)
    torch.testing.assert_close(cached, generator.generate(batch, use_cache=False), atol=1e-5, rtol=0)


@torch.no_grad()
def test_fewer_and_more_vectors(generator):
    batch = conditions(3)
    torch.testing.assert_close(generator.generate(batch, 2), generator.generate(batch, 8)[:, :2], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_given", [1, 3, NUM_VECTORS, NUM_VECTORS + 2])
def test_gpt2_continues_given_loa(generator, num_given):
    """The vectors given come first; the next one is that of teacher forcing, with the cache and without."""
    batch, given = conditions(2, 4), torch.randn(2, num_given, 32)
    cached = generator.generate(batch, loa_prefix=given)
    assert cached.shape == (2, NUM_VECTORS, 32)
    assert torch.equal(cached[:, :num_given], given[:, :NUM_VECTORS])
    torch.testing.assert_close(cached, generator.generate(batch, use_cache=False, loa_prefix=given), atol=1e-5, rtol=0)
    forced = generator.teacher_forced(batch, cached)
    torch.testing.assert_close(cached[:, num_given:], forced[:, num_given:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_beginning_of_its_own_loa_is_continued_with_the_rest(generator):
    batch = conditions(2, 4)
    loa = generator.generate(batch)
    torch.testing.assert_close(generator.generate(batch, loa_prefix=loa[:, :3]), loa, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_has_the_same_loa_alone_and_beside_longer_ones(generator, use_cache):
    batch = conditions(1, 6, 3)
    together = generator.generate(batch, use_cache=use_cache)
    for clip in range(3):
        alone = generator.generate(one_of(batch, clip), use_cache=use_cache)
        torch.testing.assert_close(together[clip], alone[0], atol=1e-5, rtol=0)
    loa = torch.randn(3, NUM_VECTORS, 32)
    alone = generator.teacher_forced(one_of(batch, 0), loa[:1])
    torch.testing.assert_close(generator.teacher_forced(batch, loa)[:1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_matter(generator):
    loa = generator.generate(conditions(3, 3))
    assert (loa[0] - loa[1]).abs().max() > 1e-2


@torch.no_grad()
def test_teacher_forcing_on_its_own_loa_gives_it_back(generator):
    batch = conditions(2, 4)
    loa = generator.generate(batch)
    torch.testing.assert_close(generator.teacher_forced(batch, loa), loa, atol=1e-5, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_gradients_go_back_through_generation(generator, use_cache):
    generator.generate(conditions(2, 4), use_cache=use_cache)[:, -1].square().sum().backward()
    for name, parameter in generator.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert generator.projection.projection.weight.grad.abs().max() > 0
    assert generator.projection.projection_1.weight.grad.abs().max() > 0


def test_cached_gradients_equal_uncached(generator):
    gradients = []
    for use_cache in (True, False):
        generator.zero_grad()
        generator.generate(conditions(3), use_cache=use_cache).square().mean().backward()
        gradients.append(generator.projection.projection.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_word_embeddings_are_frozen(generator):
    frozen = {name for name, parameter in generator.named_parameters() if not parameter.requires_grad}
    assert frozen == {"gpt2.transformer.wte.weight"}


@torch.no_grad()
def test_equals_the_loop_of_diffusers(generator):
    batch = conditions(4)
    prefix = generator.prefix(batch)
    pipeline = SimpleNamespace(language_model=generator.gpt2)
    expected = AudioLDM2Pipeline.generate_language_model(
        pipeline, prefix.embedding, max_new_tokens=None, attention_mask=prefix.mask
    )
    torch.testing.assert_close(generator.generate(batch), expected, atol=1e-5, rtol=0)


def test_learns_a_sequence(generator):
    batch, loa = conditions(2, 4), torch.randn(2, NUM_VECTORS, 32, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(60):
        loss = (generator.teacher_forced(batch, loa) - loa).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_positions_start_at_their_deviation():
    wide = LOAGPT2Config(hidden_size=32, num_layers=1, num_heads=2, num_positions=512, position_std=0.5)
    transformer = build_gpt2(wide, NUM_VECTORS).transformer
    assert transformer.wpe.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_gelu_is_one_operation_and_the_same_function():
    gpt2 = build_gpt2(SMALL, NUM_VECTORS)
    x = torch.randn(2, 5, SMALL.hidden_size)
    before, names = gpt2.transformer(inputs_embeds=x).last_hidden_state, list(gpt2.state_dict())
    fuse_gelu(gpt2)
    assert all(isinstance(block.mlp.act, torch.nn.GELU) for block in gpt2.transformer.h)
    torch.testing.assert_close(gpt2.transformer(inputs_embeds=x).last_hidden_state, before)
    assert list(gpt2.state_dict()) == names
