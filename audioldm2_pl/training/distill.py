"""Stage `distill`: a student of few steps from a trained T-UNet, the teacher, with its guidance inside.

`consistency` (Luo et al. 2023, arXiv:2310.04378): the student maps any point of the teacher's guided path to the path's
end. `rectified` (Wang et al. 2024, arXiv:2410.07303): the student predicts what the teacher does, on pairs of a noise
and the latent that the teacher makes of it, which straightens the path.

Student and teacher read what the T-UNet reads in generation: GPT-2's LOA of the captions and, with the probability
`p_gt` as in `joint`, AudioMAE's, which editing gives them. No condition is dropped: guidance is in the student, and
nothing reads it without conditions.

Letters: B batch, C × H × W latent, L vectors of a condition, D their width.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import torch
from torch import Tensor

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.config import CONDITIONS
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded
from audioldm2_pl.generation import Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model
from audioldm2_pl.models.audiomae import loa_lengths, pool_loa
from audioldm2_pl.models.consistency import consistency_function, ddim_step, distance, solver_timesteps
from audioldm2_pl.models.diffusion import (
    DiffusionConfig,
    Predict,
    alphas_cumprod,
    build_scheduler,
    diffusion_target,
    draw_noise,
    q_sample,
    sample,
)
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.guidance import UNetInputs, predictor
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import draw_rows, noise_like, seed_of
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import draw_events, drop_conditions, encode_conditions, open_conditioners
from audioldm2_pl.training.gpt2 import by_task
from audioldm2_pl.training.ldm import (
    generate_previews,
    open_audio_encoder,
    open_unet,
    unet_condition_names,
    unet_example,
)
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig


@dataclass
class DistillTrainingConfig(StageConfig):
    """Consistency with the skipping step 20 of 1,000 timesteps and EMA 0.95 (arXiv:2310.04378, section 5)."""

    batches: int = 20_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, warmup_batches=1_000)
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"distillation": 1.0}, keys=("distillation",), ge=0)
    ema_decay: float | None = 0.999
    method: Literal["consistency", "rectified"] = "consistency"
    guidance_scale: float | None = bounded(None, ge=0, le=100)  # that the student gets; null: as the teacher is sampled
    num_solver_steps: int = bounded(50, ge=1, le=100_000)  # DDIM steps of the teacher, 1 / k of the timesteps
    loss: Literal["l2", "huber"] = "l2"
    huber_c: float = bounded(1e-3, gt=0, le=10)  # of huber: below it the distance is quadratic, above it linear
    p_gt: float = bounded(0.25, ge=0, le=1)  # probability that a clip's T-UNet reads AudioMAE's LOA, not GPT-2's
    target_decay: float = bounded(0.95, ge=0, lt=1)  # of consistency: EMA of the student that gives the targets
    max_clips: int | None = bounded(None, ge=1)  # train on so many clips; of rectified, each is one pair in memory


@dataclass
class Pair:
    """What the teacher made of a clip's noise and conditions, on the CPU."""

    latent: Tensor  # (1, C, H, W)
    conditions: dict[str, Condition]  # (1, L, D) each


class Distillation(Stage):
    """Trains a copy of the T-UNet, the student, which the model folder gets in the teacher's place."""

    name = "distill"
    settings = ("conditioners", "audiomae", "vae", "unet", "gpt2", "diffusion", "start_from")
    optional = True
    reads_features = True
    networks = ("unet", "teacher", "loa_generator", *CONDITIONS, "vae", "audiomae")
    compiles = ("unet",)
    averaged = ("unet",)

    def __init__(
        self,
        config: DistillTrainingConfig,
        teacher: TUNet,
        audio_encoder: AudioEncoder,
        conditioners: dict[str, Any],
        loa_generator: LOAGenerator | None,
        diffusion: DiffusionConfig,
    ):
        """`loa_generator` is None where the T-UNet reads no LOA."""
        super().__init__(config)
        self.unet = deepcopy(teacher)
        self.target = deepcopy(teacher).requires_grad_(False) if config.method == "consistency" else None
        self.freeze(teacher=teacher)
        if loa_generator is not None:
            self.freeze(loa_generator=loa_generator)
        for conditioner in conditioners.values():
            conditioner.requires_grad_(False)
        self.add_inputs(audio_encoder, conditioners)
        self.diffusion = diffusion
        self.guidance_scale = Sampling().guidance_scale if config.guidance_scale is None else config.guidance_scale
        self.pairs: dict[str, Pair] = {}  # clip's id -> its pair, of rectified

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        loa_generator = None
        if experiment.uses_loa:
            loa_generator = LOAGenerator(folder.load("language_model"), folder.load("projection_model"))
        stage = cls(
            experiment.training.distill,
            open_unet(folder, experiment.unet.num_heads),
            open_audio_encoder(experiment, folder),
            open_conditioners(experiment, folder, experiment.condition_names),
            loa_generator,
            experiment.diffusion,
        )
        if stage.config.guidance_scale is None and "unet" in folder.started:
            stage.guidance_scale = ModelFolder(find_model(folder.started["unet"])).sampling().guidance_scale
        return stage

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        loa = ("gpt2", "audiomae") if experiment.uses_loa else ()
        return ("unet", "vae", *loa, *experiment.condition_names)

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        return ("unet",)

    @classmethod
    def check(cls, experiment: Any) -> None:
        super().check(experiment)
        teacher, own = experiment.start_from.get("unet"), experiment.model_folder
        if teacher is None or Path(teacher).resolve() == own.resolve():
            raise UserError(
                "distill: the student would overwrite its teacher; give the run a `name` of its own and the teacher in "
                "`start_from: {unet: …}`, all other parts in `from:`"
            )
        if changed := [stage for stage in experiment.stages if stage in ("ldm", "joint")]:
            raise UserError(f"distill: would overwrite what {changed[0]} makes; distil in a run of its own")
        config, sampling = experiment.training.distill, experiment.sampling
        num_timesteps = experiment.diffusion.num_timesteps
        if config.num_solver_steps >= num_timesteps:
            raise UserError(
                f"training.distill.num_solver_steps={config.num_solver_steps} has to be below "
                f"diffusion.num_timesteps={num_timesteps}"
            )
        is_consistency = config.method == "consistency"
        if sampling.guidance_scale != 1 or (sampling.sampler == "lcm") != is_consistency:
            sampler = "lcm" if is_consistency else "ddim"
            raise UserError(
                f"sampling: is to be the student's; set sampling.sampler={sampler}, sampling.guidance_scale=1 "
                "(guidance is in the student) and sampling.num_steps to a few"
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.config.method == "rectified":
            self.fill_pairs()

    @torch.no_grad()
    def fill_pairs(self) -> None:
        """One pass over the training clips in storage order, as in `fill_cache`, and the same bits in every run."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        print(f"{self.name}: the teacher samples a latent of each clip", flush=True)
        for batch in data.storage_order():
            if "waveform" in batch:
                batch["waveform"] = batch["waveform"].to(self.device)
            self.pairs |= dict(zip(batch["id"], self.sample_pairs(batch)))
        data.skip_sound(set(self.pairs))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx and self.steps_after(batch_idx - 1):  # here, and not after that batch: its checkpoint is written
            self.update_target()

    @torch.no_grad()
    def update_target(self) -> None:
        """The target follows the student (Algorithm 1)."""
        if self.target is not None:
            for target, weight in zip(self.target.parameters(), self.unet.parameters()):
                target.lerp_(weight, 1 - self.config.target_decay)

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.encode_sound(batch)  # (B, ...) each

    @torch.no_grad()
    def conditions_of(
        self, batch: dict[str, Any], features: dict[str, Tensor], reads_true: Tensor
    ) -> dict[str, Condition]:
        """Name -> what the T-UNet reads of a batch, (B, L, D): AudioMAE's LOA where `reads_true` (B,), else GPT-2's."""
        conditions = encode_conditions(self.conditioners, self.inputs(batch, features))
        generator: Any = self.frozen.get("loa_generator")
        if generator is not None:
            prompts = [conditions[name] for name in generator.conditions]
            tasks, read = list(by_task(batch, self.frozen["audio_encoder"])), []
            for rows, pooling in tasks:
                loa = pool_loa(features["grid"][rows], pooling)  # (b, L, D)
                is_true = reads_true[rows].to(loa.device)[:, None, None]  # (b, 1, 1)
                if not is_true.all():
                    said = generator.generate([prompt[rows] for prompt in prompts], loa.shape[1])  # (b, L, D)
                    loa = torch.where(is_true, loa, said)
                read.append(Condition.of(loa))
            order = torch.cat([rows for rows, _ in tasks]).argsort()  # (B,), back to that of the batch
            conditions["loa"] = Condition.cat(read)[order]
        return {name: conditions[name] for name in unet_condition_names(self)}

    def guided(self, conditions: dict[str, Condition]) -> Predict:
        """(noisy latent (B, C, H, W), timestep) => the teacher's guided prediction (B, C, H, W)."""
        config, teacher = self.unet.config, cast(TUNet, self.frozen["teacher"])
        inputs = UNetInputs.of(config, conditions)
        if self.guidance_scale != 1:
            rows = torch.ones(len(next(iter(conditions.values()))), dtype=torch.bool)  # (B,)
            without = drop_conditions(conditions, dict.fromkeys(conditions, rows), self.conditioners)
            inputs.unconditional = UNetInputs.of(config, without)
        return predictor(teacher, inputs, self.guidance_scale)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        loss = self.consistency_loss if self.config.method == "consistency" else self.rectified_loss
        return {"distillation": loss(batch)}

    def consistency_loss(self, batch: dict[str, Any]) -> Tensor:
        """Distance of f at a point of the teacher's guided path to f of the target one step on (section 4.3), a scalar.

        As in the authors' code, the step from the first point of the grid ends at timestep 0, where f is the identity.
        """
        features = self.features_of(batch)
        generator = self.shared.on(features["mean"].device)
        latent = self.frozen["audio_encoder"].draw_latent(features, generator)  # type: ignore  # (B, C, H, W)
        conditions = self.conditions_of(batch, features, draw_events(self.config.p_gt, len(latent), self.shared))
        grid = solver_timesteps(self.diffusion.num_timesteps, self.config.num_solver_steps).to(latent.device)  # (N,)
        options = {"device": latent.device, "generator": generator}
        timestep = grid[draw_rows(lambda n: torch.randint(len(grid), (n,), **options), len(latent))]  # (B,)
        earlier = (timestep - (grid[0] + 1)).clamp(min=0)  # (B,)
        alphas = alphas_cumprod(self.diffusion, latent.device)
        noisy = q_sample(latent, noise_like(latent, generator), alphas[timestep])
        with torch.no_grad():
            guided = self.guided(conditions)(noisy, timestep)
            step = ddim_step(self.diffusion, noisy, guided, alphas[timestep], alphas[earlier])  # (B, C, H, W)
            target = self.follow(self.target, step, earlier, conditions)
        return distance(
            self.config.loss, self.follow(self.unet, noisy, timestep, conditions), target, self.config.huber_c
        )

    def follow(self, unet: Any, noisy: Tensor, timestep: Tensor, conditions: dict[str, Condition]) -> Tensor:
        """Where a T-UNet says that the path through noisy latents (B, C, H, W) ends, (B, C, H, W); timesteps (B,)."""
        prediction = predictor(unet, UNetInputs.of(self.unet.config, conditions), 1.0)(noisy, timestep)
        return consistency_function(
            self.diffusion, noisy, prediction, timestep, alphas_cumprod(self.diffusion, noisy.device)[timestep]
        )

    def rectified_loss(self, batch: dict[str, Any]) -> Tensor:
        """The diffusion loss on the teacher's latents and the very noise that it made them of, a scalar."""
        clips = clips_of(batch)
        known = all(clip in self.pairs for clip in clips)
        pairs = [self.pairs[clip] for clip in clips] if known else self.sample_pairs(batch)
        latent = torch.cat([pair.latent for pair in pairs]).to(self.device)
        names = pairs[0].conditions
        conditions = {name: Condition.cat([p.conditions[name] for p in pairs]).to(self.device) for name in names}
        noise = draw_noise(latent.shape[1:], self.generators(clips)).to(self.device)  # (B, C, H, W)
        options = {"device": latent.device, "generator": self.shared.on(latent.device)}
        num_timesteps = self.diffusion.num_timesteps
        timestep = draw_rows(lambda n: torch.randint(num_timesteps, (n,), **options), len(latent))  # (B,)
        alpha_cumprod = alphas_cumprod(self.diffusion, latent.device)[timestep]  # (B,)
        inputs = UNetInputs.of(self.unet.config, conditions)
        predicted = predictor(self.unet, inputs, 1.0)(q_sample(latent, noise, alpha_cumprod), timestep)
        target = diffusion_target(self.diffusion, latent, noise, alpha_cumprod)
        return distance(self.config.loss, predicted, target, self.config.huber_c)

    def generators(self, clips: Sequence[str]) -> list[torch.Generator]:
        """One a clip, for its noise: the other clips of a batch do not matter."""
        return [torch.Generator().manual_seed(seed_of(self.seed, self.name, clip)) for clip in clips]

    @torch.no_grad()
    def sample_pairs(self, batch: dict[str, Any]) -> list[Pair]:
        """Each clip's noise and conditions => what the teacher makes of them by `num_solver_steps` steps of DDIM."""
        features, clips = self.features_of(batch), clips_of(batch)
        draws = [Random(seed_of(self.seed, self.name, clip, "loa")).random() for clip in clips]
        conditions = self.conditions_of(batch, features, torch.tensor(draws) < self.config.p_gt)
        generators = self.generators(clips)
        noise = draw_noise(features["mean"].shape[1:], generators).to(features["mean"])  # (B, C, H, W)
        sampling = Sampling(sampler=None, num_steps=self.config.num_solver_steps, eta=0.0)
        latent = sample(self.guided(conditions), self.scheduler("rectified"), noise, generators, sampling).cpu()
        return [
            Pair(latent[row : row + 1], {name: condition[row].to("cpu") for name, condition in conditions.items()})
            for row in range(len(clips))
        ]

    def scheduler(self, method: str) -> Any:
        """diffusers' scheduler of a student: LCM, or DDIM with "trailing" steps, whose first is at the last timestep.

        The first of a few "leading" ones lies far below it, but is given pure noise too (Lin et al. 2023,
        arXiv:2305.08891).
        """
        if method == "consistency":
            return build_scheduler(self.diffusion, "lcm", self.config.num_solver_steps)
        ddim = build_scheduler(self.diffusion, "ddim")
        return type(ddim).from_config(ddim.config, timestep_spacing="trailing")

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, "scheduler": self.scheduler(self.config.method)}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        return generate_previews(AudioLDM2(folder, self.device), batch, experiment)

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        return unet_example(self, experiment, max(loa_lengths(experiment.audiomae)))


def clips_of(batch: dict[str, Any]) -> list[str]:
    """Ids of a batch's clips; of one that no data module has made, their keys."""
    return list(batch.get("id", batch["key"]))
