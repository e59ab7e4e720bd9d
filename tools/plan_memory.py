r"""Says what a run would hold on each GPU, whether that fits, and what would make it fit. Downloads nothing.

    python tools/plan_memory.py --config configs/released/pixelthink_7b.yaml --gpus 8 --gpu_memory 80
    python tools/plan_memory.py --config configs/qlora_24gb.yaml --gpus 1 --gpu_memory 24 --response_tokens 400

A training step is taken with shapes only, by the code that trains: every tensor is counted while it lives. The model's
dimensions come from its folder's config.json, or from what its authors published. Completions are as long as they may
become unless `--response_tokens` says otherwise. Options of the run can follow, as for `python -m pixelthink fit`:

    python tools/plan_memory.py --config configs/released/pixelthink_7b.yaml --gpus 8 --gpu_memory 80 \
        --model.grpo.kl_coef=0

Exit code 0 where the run fits, 1 where it does not, 2 with one line where something is wrong with the call.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from pixelthink.cli.main import USER_ERRORS, one_line
from pixelthink.cli.registry import load_components
from pixelthink.planning.options import QUIET, Trial, options_for, that_fit_together, try_options
from pixelthink.planning.plan import GIB, PHASES, PURPOSES, Machine, MemoryPlan, plan_run
from pixelthink.planning.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        load_components()
        words = list(sys.argv[1:] if arguments is None else arguments)
        parser = build_parser()
        own = {f"--{action.dest}" for action in parser._actions}
        mine = [word for pair in _pairs(words) if pair[0].split("=")[0] in own for word in pair]
        rest = [word for pair in _pairs(words) if pair[0].split("=")[0] not in own for word in pair]
        options = parser.parse_args(mine)
        machine = Machine(options.gpus, options.gpu_memory, options.reserve)
        sizes = (options.response_tokens, options.text_tokens)
        run = Run.of(rest, machine.gpus)
        plan = plan_run(run, machine, *sizes)
        show(plan, machine)
        if options.options:
            possible = options_for(run)
            with tqdm(total=len(possible), desc="trying options", unit="plan", file=sys.stderr, leave=False) as bar:
                trials = try_options(rest, machine, plan, possible, bar.update, *sizes)
            show_trials(trials)
            if not plan.fits(machine):
                show_combination(rest, machine, trials, sizes)
        return 0 if plan.fits(machine) else 1
    except (*USER_ERRORS, ArgumentError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def build_parser() -> ArgumentParser:
    """The tool's own options; all others are the run's."""
    parser = ArgumentParser(prog="plan_memory.py", description=(__doc__ or "").split("\n")[0], exit_on_error=False)
    parser.add_class_arguments(Machine)
    parser.add_argument("--response_tokens", type=int | None, default=None, help="Tokens of each completion.")
    parser.add_argument("--text_tokens", type=int | None, default=None, help="Tokens of a prompt beside its image's.")
    parser.add_argument("--options", type=bool, default=True, help="Also try what would make the run smaller.")
    return parser


def _pairs(words: Sequence[str]) -> list[list[str]]:
    """Each option with its value: `--name=value` alone, `--name value` together."""
    pairs: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not pairs:
            pairs.append([word])
        else:
            pairs[-1].append(word)
    return pairs


def show(plan: MemoryPlan, machine: Machine) -> None:
    """Prints the table and the verdict."""
    total, trained = (count / 1e9 for count in plan.parameters)
    size = plan.size
    print(
        f"{total:.2f} billion parameters, {trained:.3g} billion trained; on each GPU {size.prompts} prompts × "
        f"{size.group_size} completions × {size.response_tokens} tokens, images {size.image_size[0]} × "
        f"{size.image_size[1]}\n"
    )
    width = max(len(purpose) for purpose in PURPOSES)
    print(f"{'GiB on each GPU':{width}}" + "".join(f"{name:>11}" for name in PHASES) + "    ever")
    for purpose in PURPOSES:
        values = [plan.phases[name][purpose] / GIB for name in PHASES]
        ever = max(*values, plan.most.get(purpose, 0) / GIB if purpose in ("activations", "logits", "vision") else 0)
        print(f"{purpose:{width}}" + "".join(f"{value:11.2f}" for value in values) + f"{ever:8.2f}")
    totals = [plan.phases[name].total() / GIB for name in PHASES]
    print(f"{'at the peak':{width}}" + "".join(f"{value:11.2f}" for value in totals) + f"{max(totals):8.2f}")
    verdict = "fits" if plan.fits(machine) else "does NOT fit"
    print(
        f"\nFullest in phase '{plan.fullest}': {plan.peak / GIB:.1f} GiB, and {machine.reserve:g} GiB kept for driver, "
        f"NCCL and fragmentation: {verdict} into {machine.gpu_memory:g} GiB."
    )


def show_trials(trials: Sequence[Trial]) -> None:
    """Prints the options that save anything, the most first."""
    print(
        "\nsaves GiB  fits alone  option  (its price)" if trials else "\nNo option that is known would save anything."
    )
    for trial in trials:
        print(
            f"{trial.saving / GIB:9.2f}  {'yes' if trial.fits else 'no':10}  {' '.join(trial.option.arguments)}  "
            f"({trial.option.price})"
        )


def show_combination(
    arguments: Sequence[str], machine: Machine, trials: Sequence[Trial], sizes: tuple[int | None, int | None]
) -> None:
    """Prints what would make it fit."""
    found = that_fit_together(arguments, machine, trials, *sizes)
    if found is None:
        print("\nAll of them together do not make it fit: more or larger GPUs, or a smaller model.")
        return
    chosen, plan = found
    print(f"\nTogether these make it fit, at {plan.peak / GIB:.1f} GiB:")
    for option in chosen:
        print(f"  {' '.join(option.arguments)}")


if __name__ == "__main__":
    sys.exit(main())
