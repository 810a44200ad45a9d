"""Recipes of the CLIP task. Each opens with its command and the result to expect."""

import math

from steering.settings import Arm, Recipe

DISTILLED = ("openclip", "fastclip", "drrho_clip", "jest", "jest_top_k")


def arms_of(rule: str, reference_scale: float) -> dict[str, Arm]:
    """The arms that a run trains if no others are named."""
    return {
        "unsteered": Arm(rule=rule, subtract=False),
        "drrho_clip": Arm(rule=rule, reference_scale=reference_scale),
        "jest": Arm(rule=rule, subtract=False, selector="jest(keep=0.5, chunks=4)"),
    }


def optional_arms(arms: dict[str, Arm], start: float | None = None, **further: Arm) -> dict[str, Arm]:
    """Methods of the paper's main table and others (--arms all).

    The losses of open_clip and FastCLIP learn their temperature, from ``start`` on or from the target's. The settings
    of FastCLIP v3 are those of its authors for CC3M, and those of v2 the same. NAME_distill learns from the reference's
    answers as well, with weight 1.
    """
    falling = {"subtract": False, "gamma": 0.2, "gamma_schedule": "cosine", "gamma_decay": 0.5}
    learnt = {"rule": "info_nce()", "subtract": False, "temperature": start}
    others = {
        "openclip": Arm(**learnt),
        "fastclip": Arm(rule="global_contrastive(radius=6.5)", temperature=start, **falling),
        "fastclip_v2": Arm(rule="individual(radius=6.5)", **falling),
        "jest_top_k": Arm(**learnt, selector="jest(keep=0.5, chunks=4, draw=False)"),
        "top_k": Arm(**learnt, selector="top_k(keep=0.5)"),
        **further,
    }
    distilled = {f"{name}_distill": (arms | others)[name].model_copy(update={"distill": 1.0}) for name in DISTILLED}
    return others | distilled


def emoji(temperature: float) -> Recipe:
    """The bundled pairs, 30 % of the captions wrong, and a reference that was trained on a clean part.

    Command: ``steer run clip``. What to expect is in the README, section "What to expect"; where the scale of 0.3 comes
    from in "The scale of the reference". Levels are those of the batch (gamma 1), as in the paper's main result.
    """
    arms = arms_of(f"kl(temperature={temperature:g})", 0.3)
    return Recipe(
        steps=470,
        batch=64,
        learning_rate=2e-3,
        weight_decay=0.1,
        warmup=40,
        clip_norm=1.0,
        evaluate_every=94,
        checkpoint_every=94,
        arms=arms,
        more=optional_arms(arms, drrho_cvar=Arm(rule="cvar(alpha=0.1)", reference_scale=0.3)),
        baseline="unsteered",
    )


def emoji_reference(temperature: float) -> Recipe:
    """The bundled reference: plain training on the clean captions of 600 concepts.

    Command: ``steer run clip --data emoji-reference --out reference``, which also evaluates the shipped one beside
    it. What ships in clip/emoji is its export at half precision:
    ``export(load_reference("reference"), folder, half=True)`` with the two from ``steering.clip``.
    """
    plain = Arm(rule=f"kl(temperature={temperature:g})", subtract=False)
    return emoji(temperature).model_copy(update={"arms": {"plain": plain}, "baseline": "plain"})


def shards(temperature: float, pairs: int, *, scratch: bool = True) -> Recipe:
    """Your own pairs: the optimiser of the paper (Wei et al. 2025, ViT-B/16 on DFN-192M), five passes.

    Command: ``steer run clip --model ViT-B-16 --data 'shards/{000..099}.tar' --ref openai/ViT-B-32``.
    Result: not run. Arms that learn a temperature begin at 0.07, as their authors do, unless the target is trained
    already. The batch is 256, or a quarter of the data; a GPU takes more: ``--batch 5120``.
    """
    batch = max(1, min(256, pairs // 4))
    steps = max(1, 5 * pairs // batch)
    arms = arms_of(f"kl(temperature={temperature:g}, epsilon=1e-4)", 1.0)
    return Recipe(
        steps=steps,
        batch=batch,
        learning_rate=3.125e-4,
        weight_decay=0.2,
        warmup=min(500, math.ceil(steps / 10)),
        evaluate_every=max(1, steps // 5),
        checkpoint_every=max(1, min(500, steps // 5)),
        arms=arms,
        more=optional_arms(arms, 0.07 if scratch else None),
        baseline="unsteered",
    )
