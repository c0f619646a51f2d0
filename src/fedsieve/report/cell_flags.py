"""Flags that come from comparing the runs of one setting: attacks and defenses, seed by seed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from fedsieve.core.damage import damage
from fedsieve.report.damage import MEAN, Against
from fedsieve.report.load import Run
from fedsieve.report.settings import names
from fedsieve.report.text import number, some

ACCURACY = 0.01  # a smaller difference of accuracy is noise
SUCCESS = 0.1  # a smaller difference of attack success is noise; clean models misread as many triggered samples

Found = tuple[str, str, list[Run]]  # name of the flag, text, runs
Cells = Mapping[tuple[str, str], Mapping[int, Run]]  # runs by defense and attack, then by seed


def found(runs: Sequence[Run], compared: Mapping[Path, Against]) -> Iterator[Found]:
    """The flags of finished runs that differ in attack, defense and seed only."""
    cells: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        if run.experiment is not None:
            cells.setdefault((run.defense, run.attack), {}).setdefault(run.experiment.seed, run)
    harmless = set()
    for attack in sorted({attack for _, attack in cells}):
        for flag in _harmless(attack, cells, compared):
            harmless.add(attack)
            yield flag
    for (defense, attack), by_seed in cells.items():
        if attack not in harmless:  # where nothing is to be gained, everybody equals the mean
            yield from _equal_to_mean(defense, attack, by_seed, cells)
        yield from _adaptive_weaker(defense, attack, by_seed, cells)
    yield from _one_seed(cells)


def _harmless(attack: str, cells: Cells, compared: Mapping[Path, Against]) -> Iterator[Found]:
    """The undefended mean loses nothing under this attack, nor does its backdoor work."""
    runs, losses = [], []
    for run in cells.get(("mean", attack), {}).values():
        if (c := compared.get(run.path)) and c.against == MEAN and c.whole:
            runs.append(run)
            losses.append(c.damage)
    if not runs:
        return
    lost, late, success = mean(d.mean for d in losses), mean(d.late for d in losses), max(map(_success, runs))
    if max(lost, late) < ACCURACY and success < SUCCESS:
        backdoor = f", and its backdoor works in {number(success)} % at most" if _has_backdoor(runs) else ""
        yield (
            "harmless-attack",
            f"{attack} costs the undefended mean {_signed(lost)} % of accuracy per round and {_signed(late)} % in the "
            f"last tenth{backdoor}: what a defense does here shows nothing",
            runs,
        )


def _equal_to_mean(defense: str, attack: str, by_seed: Mapping[int, Run], cells: Cells) -> Iterator[Found]:
    """This defense has no better accuracy and no smaller backdoor than the undefended mean."""
    undefended = cells.get(("mean", attack), {})
    if defense == "mean" or attack == "none" or (more := _more(by_seed, undefended)) is None:
        return
    if min(more.lost, more.late) > -ACCURACY and more.success > -SUCCESS:
        runs = [*by_seed.values(), *undefended.values()]
        backdoor = f", attack success {_signed(more.success)} %" if _has_backdoor(runs) else ""
        yield (
            "equal-to-mean",
            f"under {attack} {defense} is no better than the undefended mean: accuracy {_signed(-more.lost)} % per "
            f"round, {_signed(-more.late)} % in the last tenth{backdoor}",
            runs,
        )


def _adaptive_weaker(defense: str, attack: str, by_seed: Mapping[int, Run], cells: Cells) -> Iterator[Found]:
    """This adaptive attack does less damage to the defense than one that doesn't know it."""
    if not _adaptive(by_seed):
        return
    stronger = []
    for (against, other), plain in cells.items():
        if against != defense or other == "none" or _adaptive(plain) or (more := _more(plain, by_seed)) is None:
            continue
        if (more.lost > ACCURACY and more.success > -SUCCESS) or (more.success > SUCCESS and more.lost > -ACCURACY):
            stronger.append((more, other, list(plain.values())))
    if stronger:
        more, other, runs = max(stronger, key=lambda each: each[0].lost + each[0].success)
        runs = [*by_seed.values(), *runs]
        backdoor = f", attack success {_signed(more.success)} %" if _has_backdoor(runs) else ""
        yield (
            "adaptive-weaker",
            f"{attack} does less damage to {defense} than {other}: accuracy lost per round {_signed(more.lost)} %"
            f"{backdoor}",
            runs,
        )


def _one_seed(cells: Cells) -> Iterator[Found]:
    """Cells without a spread."""
    alone = {f"{defense} against {attack}": runs for (defense, attack), runs in cells.items() if len(runs) == 1}
    if alone:
        said = f"{len(alone)} of {len(cells)} cells have one seed, so their numbers have no spread: {some([*alone])}"
        yield "one-seed", said, [run for runs in alone.values() for run in runs.values()]


@dataclass(frozen=True)
class _More:
    """How much more damage is done in one cell than in another: means over their common seeds.

    Attributes:
        lost: Accuracy per round.
        late: Accuracy in the last tenth of the rounds.
        success: Attack success, the highest in the second half of the rounds.
    """

    lost: float
    late: float
    success: float


def _more(one: Mapping[int, Run], other: Mapping[int, Run]) -> _More | None:
    """Of the first cell than of the second; None without a common seed that was evaluated."""
    pairs = []
    for seed in sorted(one.keys() & other.keys()):
        a, b = one[seed], other[seed]
        if (lost := damage(a.digest.accuracies, b.digest.accuracies)) is not None:
            pairs.append((lost.mean, lost.late, _success(a) - _success(b)))
    return _More(*(mean(values) for values in zip(*pairs, strict=True))) if pairs else None


def _success(run: Run) -> float:
    """The highest attack success rate in the second half of the rounds; 0 without a backdoor.

    In the first rounds an untrained model may read everything as the attacker's class.
    """
    rounds, rates = run.digest.curves["attack_success_rate"]
    return max((rate for k, rate in zip(rounds, rates, strict=True) if k >= run.digest.rounds // 2), default=0.0)


def _has_backdoor(runs: Iterable[Run]) -> bool:
    return any(run.summary["worst_attack_success_rate"] is not None for run in runs)


def _adaptive(runs: Mapping[int, Run]) -> bool:
    """Whether the attack, or one that it is made of, is adaptive by its name."""
    attacks = [run.experiment.attack.model_dump(mode="json") for run in runs.values() if run.experiment is not None]
    return any(name.startswith("adaptive-") for name in names(attacks))


def _signed(value: float) -> str:
    """A difference in per cent, with its sign."""
    return f"{100 * (round(value, 3) + 0.0):+.1f}"
