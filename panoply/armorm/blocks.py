"""Stage 1 on rows that are not in memory: sums of immutable blocks, computed by any worker.

A block is stored under the hash of what it holds, and blocks are added in the order of their plan,
so kill, resume and the number of workers give the same sums by construction. They are added while
they come: beside the sums at most two blocks a worker are stored. Sums take a hundred times the
space of what is solved from them, so they are removed once that is stored.

Shapes: N rows, O all objectives, P the objectives of one pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from panoply.armorm.out_of_fold import SELECT, FoldedRidge, fit_folds
from panoply.armorm.ridge import Moments, Pattern, Ridge, load, merge, moments, save
from panoply.config.armorm import ObjectivesConfig
from panoply.data.features import StoredFeatures
from panoply.data.schema import digest
from panoply.files import reading, whole_file
from panoply.types import Array, Ints


@dataclass(frozen=True, slots=True)
class Block:
    """Rated rows of one fold and one missingness pattern: an immutable unit of the sums."""

    name: str
    """Hash of the features' key, their places and the labels."""
    fold: int
    """Fold of the training prompts, or SELECT."""
    pattern: Pattern
    features: StoredFeatures
    labels_NP: Array

    def sums(self) -> Moments:
        """Returns the sums of the block; one shard of features is in memory at a time."""
        parts = (
            {self.pattern: moments(x, self.labels_NP[rows])} for rows, x in self.features.parts()
        )
        return merge(parts)[self.pattern]

    def file(self, folder: Path) -> Path:
        """Returns the file of the sums."""
        return folder / f"{self.name}.npz"

    def write(self, folder: Path) -> None:
        """Writes the sums, unless they are there."""
        if not self.file(folder).exists():
            with whole_file(self.file(folder)) as partial:
                save(partial, {self.pattern: self.sums()})


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks of one fold and pattern, and their running sum in a file, named by how many it has."""

    name: str
    """Hash of the blocks' names."""
    blocks: tuple[Block, ...]
    folder: Path

    @classmethod
    def of(cls, blocks: Iterable[Block], folder: Path) -> Chain:
        """Returns the chain of some blocks in their order."""
        in_order = tuple(blocks)
        return cls(digest(*(block.name for block in in_order)), in_order, folder)

    def files(self) -> dict[int, Path]:
        """Returns files of running sums by their number of blocks; a kill may leave two of them."""
        files = self.folder.glob(f"{self.name}-*.npz")
        return {int(file.stem.rpartition("-")[2]): file for file in files}

    def num_added(self) -> int:
        """Returns how many blocks the running sum has."""
        return max(self.files(), default=0)

    def read(self) -> dict[Pattern, Moments]:
        """Returns the running sum; empty before the first block.

        Raises:
            ValueError: its file is damaged.
        """
        files = self.files()
        if not files:
            return {}
        newest = files[max(files)]
        with reading(newest):
            return load(newest)

    def add(self, blocks: Sequence[Block]) -> None:
        """Adds the next blocks, whose sums are stored, to the running sum, and removes theirs.

        Raises:
            ValueError: a file is damaged.
        """
        earlier = self.files()
        target = self.folder / f"{self.name}-{max(earlier, default=0) + len(blocks)}.npz"
        files = [block.file(self.folder) for block in blocks]
        if not earlier and len(files) == 1:
            files[0].replace(target)  # many a pattern has one block
            return
        sums = [self.read()]
        for file in files:
            with reading(file):
                sums.append(load(file))
        with whole_file(target) as partial:
            save(partial, merge(sums))
        for file in (*files, *earlier.values()):
            file.unlink()

    def remove(self) -> None:
        """Removes all that is stored."""
        for file in (*self.files().values(), *(block.file(self.folder) for block in self.blocks)):
            file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class BlockSums:
    """Planned blocks, and the folder that holds the sums of those that are done."""

    blocks: tuple[Block, ...]
    folder: str

    def chains(self) -> list[Chain]:
        """Returns the blocks of each pattern and fold, in the order of the plan."""
        groups = groupby(self.blocks, key=_pattern_and_fold)
        return [Chain.of(blocks, Path(self.folder)) for _, blocks in groups]

    def write(
        self, rank: int = 0, world: int = 1, meet: Callable[[int], int] = lambda value: value
    ) -> None:
        """Adds up the blocks that are left: workers compute one each in turn, the first adds them.

        Args:
            rank: this worker, 0 to `world - 1`.
            world: workers that take part.
            meet: returns the value of worker 0 once every worker has called it.
        """
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        chains = self.chains()
        chain_of = {block.name: chain for chain in chains for block in chain.blocks}
        # Worker 0 alone looks: the others may see a shared folder as it was a while ago.
        num_added = meet(_num_added(chains) if rank == 0 else 0)
        for start in range(num_added, len(self.blocks), world):
            turn = self.blocks[start : start + world]
            if rank < len(turn):
                turn[rank].write(Path(self.folder))
            meet(start)  # all of this turn are stored, and those of the turn before are added
            if rank == 0:
                for _, group in groupby(turn, key=_pattern_and_fold):
                    blocks = list(group)
                    chain_of[blocks[0].name].add(blocks)
        meet(len(self.blocks))

    def solution_file(self, config: ObjectivesConfig) -> Path:
        """Returns the file of what is fitted to these blocks under some settings."""
        names = (block.name for block in self.blocks)
        key = digest(str(config.num_folds), str(config.strengths), *names)
        return Path(self.folder) / f"solution-{key}.npz"

    def solve(self, num_objectives: int, config: ObjectivesConfig) -> FoldedRidge:
        """Fits every objective, or reads what was fitted before; then removes the sums."""
        solution = self.solution_file(config)
        if not solution.exists():
            with whole_file(solution) as partial:
                save_folded(partial, fit_blocks(self, num_objectives, config))
        for chain in self.chains():
            chain.remove()
        return load_folded(solution)

    def read(self, fold: int, patterns: frozenset[Pattern]) -> dict[Pattern, Moments]:
        """Returns the sums of one fold."""
        firsts = [(chain, chain.blocks[0]) for chain in self.chains()]
        return merge(
            chain.read()
            for chain, first in firsts
            if first.fold == fold and first.pattern in patterns
        )


def _num_added(chains: Sequence[Chain]) -> int:
    """Returns how many blocks are added, from the first on.

    A damaged sum may have been deleted: those behind it are removed, and added again.
    """
    num_added = 0
    for number, chain in enumerate(chains):
        num_added += chain.num_added()
        if chain.num_added() < len(chain.blocks):
            for behind in chains[number + 1 :]:
                behind.remove()
            break
    return num_added


def _pattern_and_fold(block: Block) -> tuple[Pattern, int]:
    return block.pattern, block.fold


def plan_blocks(
    labels_NO: Array, fold_N: Ints, features: StoredFeatures, block_rows: int
) -> tuple[Block, ...]:
    """Cuts rated rows into blocks of one fold and one missingness pattern, in shard order.

    Args:
        labels_NO: NaN where not rated.
        fold_N: fold of the row, or SELECT; rows below SELECT are left out.
        features: of the rows.
        block_rows: most rows in a block.
    """
    places = features.places
    key = f"{features.store.uri}/{','.join(features.columns)}"
    blocks: list[Block] = []
    masks, mask_N = np.unique(~np.isnan(labels_NO), axis=0, return_inverse=True)
    for number, mask in enumerate(masks):
        pattern = tuple(int(i) for i in np.flatnonzero(mask))
        for fold in np.unique(fold_N[fold_N >= SELECT]) if pattern else ():
            rows = np.flatnonzero((mask_N.reshape(-1) == number) & (fold_N == fold))
            rows = rows[np.lexsort((places.row_N[rows], places.shard_N[rows]))]
            for start in range(0, len(rows), block_rows):
                part = rows[start : start + block_rows]
                in_block, labels = places[part], labels_NO[part][:, mask]
                addresses = [
                    f"{places.shards[shard]}:{row};"
                    for shard, row in zip(in_block.shard_N, in_block.row_N, strict=True)
                ]
                name = digest(key, str(pattern), "".join(addresses), labels.tobytes().hex())
                stored = StoredFeatures(features.store, features.columns, in_block)
                blocks.append(Block(name, int(fold), pattern, stored, labels))
    return tuple(blocks)


def linked_patterns(patterns: Iterable[Pattern]) -> Iterator[frozenset[Pattern]]:
    """Yields groups of patterns that share no objective, so that each is solved on its own."""
    left = sorted(set(patterns))
    while left:
        group = [left.pop(0)]
        for pattern in group:  # grows while it is walked: what is near a near one joins too
            near = [other for other in left if set(other) & set(pattern)]
            group += near
            left = [other for other in left if other not in near]
        yield frozenset(group)


def fit_blocks(sums: BlockSums, num_objectives: int, config: ObjectivesConfig) -> FoldedRidge:
    """Fits every objective from stored sums; those of one group of patterns are in memory."""
    fits: list[FoldedRidge] = []
    for patterns in linked_patterns(block.pattern for block in sums.blocks):
        folds = [sums.read(fold, patterns) for fold in range(config.num_folds)]
        select = sums.read(SELECT, patterns)
        fits.append(fit_folds(folds, select, num_objectives, config.strengths))
    left_out = zip(*(fit.folds for fit in fits), strict=True)
    return FoldedRidge(_join([fit.full for fit in fits]), tuple(map(_join, left_out)))


def save_folded(file: Path, fitted: FoldedRidge) -> None:
    """Writes ridges as .npz, in the order: that on all rows, then one without each fold."""
    fits = (fitted.full, *fitted.folds)
    stacked = {name: np.stack([getattr(fit, name) for fit in fits]) for name in Ridge._fields}
    np.savez(file, allow_pickle=False, **stacked)


def load_folded(file: Path) -> FoldedRidge:
    """Reads what `save_folded` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        stacked = [stored[name] for name in Ridge._fields]
    full, *folds = (Ridge(*arrays) for arrays in zip(*stacked, strict=True))
    return FoldedRidge(full, tuple(folds))


def _join(parts: Sequence[Ridge]) -> Ridge:
    """Returns one ridge of parts that each fitted other objectives and left NaN elsewhere."""
    whole = Ridge(parts[0].weights.copy(), parts[0].bias.copy(), parts[0].strength.copy())
    for part in parts[1:]:
        fitted = ~np.isnan(part.bias)
        for into, array in zip(whole, part, strict=True):
            into[fitted] = array[fitted]
    return whole
