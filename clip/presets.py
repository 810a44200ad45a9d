"""Settings of published trainings, for ``steer run clip --preset NAME --data YOUR_SHARDS``.

Numbers are those of the papers' text and scripts; paths, and whatever else is typed, come on top. None of them was run
here at its size, so each says what was published, or nothing. Where a temperature is learned, its learning rate is
``scalar_lr_factor`` times the others'.
"""

from typing import Any

from omegaconf import OmegaConf

from steering.clip.emoji_data import BUNDLE

YOURS = {"data": "YOUR_SHARDS"}  # has to be typed: without it a preset would train on the bundled pairs
ADAM_OF_CLIP = {"betas": [0.9, 0.98], "adam_epsilon": 1e-6}
DRRHO = {"rule": "kl(temperature=0.01, epsilon=1e-4)", "reference_scale": 1.0}
PLAIN = {"rule": "info_nce()", "subtract": False}
OPENCLIP = {**PLAIN, "temperature": 0.07}  # where it begins to be learned
FASTCLIP = "weight_decay=0.1 warmup=10000 precision=fp16 checkpoint_every=2000"
JEST = {**OPENCLIP, "selector": "jest(keep=0.2, chunks=2)"}

KL = {"rule": "kl(temperature=0.07)"}
ICONS = {"model": "emoji-rn32", "temperature": 0.07}  # 32 pixels, 1.3 million parameters
ICONS_SETTINGS = "batch=128 learning_rate=2e-3 weight_decay=0.1 warmup=100 clip_norm=1.0 checkpoint_every=250"


def fastclip(radius: float, gamma: float = 1.0, decay: float = 0.5, epsilon: float = 1e-14) -> dict[str, Any]:
    """FastCLIP v3: the global contrastive loss with a learned temperature, gamma falling like a cosine."""
    rule = f"global_contrastive(radius={radius:g}, epsilon={epsilon:g})"
    falling = {"gamma": gamma, "gamma_schedule": "cosine", "gamma_decay": decay} if gamma < 1 else {}
    return {"rule": rule, "subtract": False, "temperature": 0.07, **falling}


def preset(
    options: dict[str, Any], arms: dict[str, Any], optional_arms: dict[str, Any], settings: str
) -> dict[str, dict[str, Any]]:
    """Options and recipe; ``settings`` are as ``--set`` takes those of the recipe."""
    typed: Any = OmegaConf.to_container(OmegaConf.from_dotlist(settings.split()))
    recipe = {**ADAM_OF_CLIP, **typed, "arms": arms, "more": optional_arms, "baseline": next(iter(arms))}
    return {"options": {**YOURS, **options}, "recipe": recipe}


PRESETS: dict[str, dict[str, Any]] = {
    # steer run clip --preset drrho-clip-vit-b16-dfn192m --data 'dfn/{00000..19999}.tar'
    # The paper's main result (Wei et al. 2025, and its code): 7 passes over 192 million pairs, two days of 8 H100.
    # Published: 68.84 % zero-shot ImageNet, 67.37 % for fastclip. Not run here.
    "drrho-clip-vit-b16-dfn192m": preset(
        {"model": "ViT-B-16", "ref": "openai/ViT-B-32", "temperature": 0.01},
        {"drrho_clip": DRRHO},
        {
            "fastclip": fastclip(11.0),
            "openclip": OPENCLIP,
            "jest": JEST,
            "jest_top_k": {**OPENCLIP, "selector": "jest(keep=0.2, chunks=2, draw=False)"},
            "drrho_clip_distill": {**DRRHO, "distill": 1.0},  # the paper's weight is not published
            "fastclip_distill": {**fastclip(11.0), "distill": 1.0},
        },
        "steps=262752 batch=5120 learning_rate=3.125e-4 scalar_lr_factor=0.25 weight_decay=0.2 warmup=500 "
        "precision=fp16 checkpoint_every=5000 checkpoint_minutes=30 keep_checkpoints=2 log_every=100",
    ),
    # steer run clip --preset fastclip-cc3m --data 'cc3m/{00000..00331}.tar' --ref openai/ViT-B-32
    # FastCLIP's CC3M (Wei et al. 2024): ResNet-50, about 37 passes. Published for v1, of fixed temperature: DataComp
    # average 24.87. Not run here.
    "fastclip-cc3m": preset(
        {"model": "RN50", "ref": "openai/ViT-B-32", "temperature": 0.07},
        {"fastclip": fastclip(6.5, gamma=0.2, decay=18 / 37)},
        {"openclip": OPENCLIP, "drrho_clip": {**DRRHO, "gamma": 0.2, "gamma_schedule": "cosine"}},
        f"steps=100000 batch=1024 learning_rate=1e-3 scalar_lr_factor=0.2 {FASTCLIP}",
    ),
    # steer run clip --preset fastclip-cc12m --data 'cc12m/{00000..01242}.tar' --ref openai/ViT-B-32
    # FastCLIP's CC12M: ViT-B/32, 33 passes over 9.2 million pairs. Published for v1: DataComp average 30.65.
    # Not run here.
    "fastclip-cc12m": preset(
        {"model": "ViT-B-32", "ref": "openai/ViT-B-32", "temperature": 0.07},
        {"fastclip": fastclip(8.5, gamma=0.2, decay=16 / 33)},
        {"openclip": OPENCLIP, "drrho_clip": {**DRRHO, "gamma": "auto", "gamma_schedule": "cosine"}},
        f"steps=148000 batch=2048 learning_rate=4e-4 scalar_lr_factor=0.25 {FASTCLIP}",
    ),
    # steer run clip --preset one-gpu --data 'shards/{000..099}.tar' --ref openai/ViT-B-32
    # A ViT-B/32 from scratch on one GPU, DRRho-CLIP against open_clip's loss. Ours, not published. Not run here.
    "one-gpu": preset(
        {"model": "ViT-B-32", "ref": "openai/ViT-B-32", "temperature": 0.01, "workers": 8},
        {"openclip": OPENCLIP, "drrho_clip": DRRHO},
        {"jest": JEST},
        "steps=20000 batch=1024 micro_batch=512 learning_rate=5e-4 scalar_lr_factor=0.25 weight_decay=0.2 "
        "warmup=1000 precision=bf16 checkpoint_every=1000",
    ),
    # steer run clip --preset fine-tune --data 'mine/{000..009}.tar' --set options.zeroshot=imagenet:FOLDER
    # A trained model goes on with pairs of yours, and shall not lose what it knew: it is its own reference (and
    # teacher). The first arm shows what is lost without. Ours, not published. Not run here at this size.
    "fine-tune": preset(
        {"init": "openai/ViT-B-32"},
        {"openclip": PLAIN, "drrho_clip": DRRHO, "drrho_clip_distill": {**DRRHO, "distill": 1.0}},
        {"openclip_distill": {**PLAIN, "distill": 1.0}},
        "learning_rate=1e-5 scalar_lr_factor=0.25 weight_decay=0.1 warmup=100 clip_norm=1.0",
    ),
    # steer run clip --preset icons-reference --data 'icons/reference/*.tar' --val icons/held-out-concepts/000.tar \
    #     --out icon-reference
    # A reference for icons, see docs/icons.md: a small model trained on a part that its targets never see. The bundled
    # one, of emoji, is evaluated beside it.
    "icons-reference": preset(
        {**ICONS, "ref": f"local-dir:{BUNDLE}"},
        {"plain": {**KL, "subtract": False}},
        {"openclip": OPENCLIP},
        f"steps=1000 evaluate_every=250 {ICONS_SETTINGS}",
    ),
    # steer run clip --preset icons --data 'icons/train/*.tar' --val icons/held-out-concepts/000.tar \
    #     --ref icon-reference
    # A target as small, from other icons with their names as they are. Measured in docs/icons.md.
    "icons": preset(
        {**ICONS, "ref": "YOUR_REFERENCE"},
        {
            "unsteered": {**KL, "subtract": False},
            "drrho_clip": {**KL, "reference_scale": 0.3},
            "jest": {**KL, "subtract": False, "selector": "jest(keep=0.5, chunks=4)"},
        },
        {"openclip": OPENCLIP, "fastclip": fastclip(6.5, gamma=0.2)},
        f"steps=1500 evaluate_every=300 {ICONS_SETTINGS}",
    ),
}
