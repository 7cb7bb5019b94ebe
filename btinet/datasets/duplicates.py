"""Exact and near-duplicate images of a dataset, for its audit and for splits that do not leak.

Two images are near duplicates when the cosine similarity of their fingerprints, as they are or with one of them
mirrored left to right, reaches ``THRESHOLD``. Mirrored, because a quarter of BRISC are mirrored copies of the rest;
turned or upside-down copies were looked for in BUSI, HAM10000 and BRISC as well: there are none.

A copy is found in spite of JPEG compression, resizing, a change of brightness, contrast or gamma, an annotation, a
crop of 1 % a side or a shift of 1 %: of 2340 such copies, 13 of each of 60 images of each dataset, 3 were missed. Of
copies shifted by 2 %, four in five are. Photographs of one lesion or patient from another angle or distance are no
copies: only ids can join those.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

GRID = 24
"""Cells a side of the thumbnail that a fingerprint describes."""

FINGERPRINT_BYTES = GRID**2

NOISE = 2
"""Grey levels: detail weaker than this counts for little, so that JPEG noise on black does not."""

SCALE = 14
"""Fingerprint steps to one mean deviation of the neighbourhood. A cell deviates by 9 of those at most: within int8."""

THRESHOLD = 0.8
"""Cosine similarity from which a pair counts as near duplicates; chosen by looking at pairs, as follows.

=========  =====  =====  ========  =======  =============================================================
dataset    exact  near   clusters  largest  across
=========  =====  =====  ========  =======  =============================================================
BUSI           1    186       132        4  classes: 9
HAM10000       2    108        74        3  lesions: 1, and it is the same photograph under two lesion ids
BRISC        159   4067      1306       20  classes: 5; official train and test: 1361
=========  =====  =====  ========  =======  =============================================================

BUSI: the 71 pairs looked at, among them all 12 below 0.84 and all 9 across classes, are the same picture. So are, more
or less shifted, all 27 pairs between 0.5 and 0.8, which are missed. HAM10000: the 27 looked at, of the lowest, are the
same picture. 0.75 would add 24 pairs, 3 of them of different lesions. BRISC: 1659 pairs are mirrored copies, all above
0.98 (23 looked at) and none between 0.95 and 0.98. From 0.85 to 0.95 lie neighbouring slices of one head (92 looked
at); from 0.80 to 0.85 (1375 pairs) too, but about 6 of the 48 looked at are two heads much alike. So in an MRI dataset
a near duplicate below 0.95 means the same patient rather than the same picture.
"""

BLOCK_ROWS = 256
"""Rows of the similarity matrix held at a time."""

DUPLICATES = pa.schema(
    [
        pa.field("a", pa.string(), nullable=False),
        pa.field("b", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
        pa.field("exact", pa.bool_(), nullable=False),
    ]
)
"""One row a pair of samples, ``a`` < ``b``, sorted; similarity -1..1."""


def fingerprint(image: NDArray[np.uint8]) -> bytes:
    """What a picture shows, whatever its size, brightness and contrast: FINGERPRINT_BYTES int8 numbers.

    Each cell of a GRID x GRID grey thumbnail, less the mean of its 3x3 neighbourhood, relative to the mean
    deviation there: all images of a modality share their low frequencies, and bright contours (the skull) would
    outweigh the rest. All arithmetic is in integers: the same bytes on any machine.

    Args:
        image: RGB [H, W, 3] of any size.
    """
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    thumbnail = _divide(_cell_sums(grey), grey.size)
    deviation = 9 * thumbnail - _neighbourhood_sum(thumbnail)  # in ninths of a grey level
    spread = _neighbourhood_sum(np.abs(deviation))  # in 81sts
    return _divide(SCALE * 9 * deviation, spread + 81 * NOISE).astype(np.int8).tobytes()


def find_duplicates(sample_ids: Sequence[str], pixel_hashes: Sequence[str], fingerprints: Sequence[bytes]) -> pa.Table:
    """Every pair of samples with the same pixels (exact) or with similar fingerprints (near).

    An image without any detail, such as a constant one, has similarity 0 to every image but its exact copies.

    Args:
        sample_ids, pixel_hashes, fingerprints: one of each a sample, in any order.

    Returns:
        DUPLICATES; it does not depend on the order of the samples. An exact pair has similarity 1. Every pair is
        a row: n copies of one image make n (n - 1) / 2.

    Raises:
        ValueError: a sample is listed twice, the three differ in length, or a fingerprint is of another length.
    """
    if len(set(sample_ids)) < len(sample_ids):
        raise ValueError("a sample is listed twice")
    if any(len(each) != FINGERPRINT_BYTES for each in fingerprints):
        raise ValueError(f"a fingerprint is not {FINGERPRINT_BYTES} bytes long: make it again with this version")
    samples = sorted(zip(sample_ids, pixel_hashes, fingerprints, strict=True))
    ids = pa.array([sample[0] for sample in samples], pa.string())
    hashes = pa.array([sample[1] for sample in samples], pa.string()).dictionary_encode().indices.to_numpy()
    steps = np.frombuffer(b"".join(sample[2] for sample in samples), np.int8)
    # sums of products of int8 stay below 2**24: float32 holds them exactly, in whatever order BLAS adds them
    vectors = steps.reshape(-1, FINGERPRINT_BYTES).astype(np.float32)
    mirrored = vectors.reshape(-1, GRID, GRID)[:, :, ::-1].reshape(vectors.shape)
    squares = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)

    blocks = [DUPLICATES.empty_table()]
    for start in range(0, len(samples), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        products = np.maximum(vectors[block] @ vectors[start:].T, mirrored[block] @ vectors[start:].T)
        norms = np.sqrt(np.outer(squares[block], squares[start:]))
        similarity = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
        similarity[hashes[block, None] == hashes[start:]] = 1
        first, second = np.nonzero(np.triu(similarity >= THRESHOLD, k=1))
        pairs = {
            "a": ids.take(first + start),
            "b": ids.take(second + start),
            "similarity": similarity[first, second].astype(np.float32),
            "exact": hashes[first + start] == hashes[second + start],
        }
        blocks.append(pa.table(pairs, DUPLICATES))
    return pa.concat_tables(blocks).combine_chunks()


def clusters(
    sample_ids: Sequence[str], pairs: pa.Table, groups: Sequence[str | None] | None = None
) -> NDArray[np.int64]:
    """Join samples that are duplicates or of one group, directly or through others.

    Args:
        pairs: columns a, b of DUPLICATES.
        groups: each sample's lesion or patient, None where not known.

    Returns:
        [N] cluster number of each sample; clusters are numbered from 0 by their smallest sample id.

    Raises:
        ValueError: ``pairs`` names a sample that is not in ``sample_ids``, or ``groups`` has another length.
    """
    count = len(sample_ids)
    if groups is None:
        groups = [None] * count
    if len(groups) != count:
        raise ValueError(f"{len(groups)} groups for {count} samples")
    ids = pa.array(sample_ids, pa.string())
    first = pc.index_in(pairs["a"], ids)
    second = pc.index_in(pairs["b"], ids)
    if first.null_count or second.null_count:
        raise ValueError("pairs name samples that are not listed")
    # a group is a node of its own, joined with its samples
    members = pa.array(groups, pa.string()).dictionary_encode().indices
    in_group = members.is_valid().to_numpy(zero_copy_only=False)
    rows = np.concatenate([first.to_numpy(), np.flatnonzero(in_group)])
    columns = np.concatenate([second.to_numpy(), count + members.drop_null().to_numpy()])
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(2 * count, 2 * count))
    component = connected_components(graph, directed=False)[1][:count]

    by_id = np.argsort(np.array(sample_ids, object))
    _, first_member = np.unique(component[by_id], return_index=True)
    number = np.argsort(np.argsort(first_member))
    return number[np.unique(component, return_inverse=True)[1]]


def _cell_sums(grey: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[GRID, GRID]: the sum of [H, W] over each of GRID x GRID equal cells, in 1/GRID**2 of a pixel.

    Where a cell's edge falls within a pixel, the pixel counts by its share on either side. The sum from the picture's
    corner to a cell's grows linearly within a pixel, so it lies between those to the pixel's own corners.
    """
    sums = cv2.integral(grey, sdepth=cv2.CV_64F)  # whole numbers below 2**53: exact
    for length in grey.shape:  # along the height, then along the width
        whole, share = np.divmod(np.arange(GRID + 1) * length, GRID)
        following = np.minimum(whole + 1, length)
        sums = sums[whole].T * (GRID - share) + sums[following].T * share
    return np.diff(np.diff(sums, axis=0), axis=1).astype(np.int64)


def _neighbourhood_sum(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sum over 3x3 neighbours of [H, W]; the border is repeated outwards."""
    total = cv2.boxFilter(values, -1, (3, 3), normalize=False, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(total, np.int32)


def _divide(numerator: NDArray[np.signedinteger], denominator: NDArray[np.int32] | int) -> NDArray[np.int32]:
    """Quotient rounded to the nearest integer, half up."""
    return ((2 * numerator + denominator) // (2 * denominator)).astype(np.int32)
