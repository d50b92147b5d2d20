"""This times the diversity of samples at one λ, and sacrebleu's own sentence BLEU of the same pairs.

    python benchmarks/diversity.py [--quick]

There are 1000 prompts × 16 samples of 50 words, drawn from an invented vocabulary by Zipf's law. sacrebleu is timed on a
part of the prompts. Both times are processor time of one core, so that other load on the machine does not count.
"""

import argparse
import json
import platform
import string
import time
from importlib import metadata
from itertools import permutations

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from calibration.metrics.diversity import DIVERSITY, diversity

SAMPLES, WORDS, VOCABULARY, SENTENCE, PEER_PROMPTS = 16, 50, 3000, 10, 8


def invented(prompts: int) -> list[str]:
    """Return the samples of some prompts, one prompt after the other."""
    rng = np.random.default_rng(0)
    letters = list(string.ascii_lowercase)
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY)]
    share = 1 / np.arange(1, VOCABULARY + 1)
    drawn = rng.choice(VOCABULARY, (prompts * SAMPLES, WORDS), p=share / share.sum())
    return [" ".join(words[at] + "." * (i % SENTENCE == SENTENCE - 1) for i, at in enumerate(row)) for row in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 prompts")
    prompts = 100 if parser.parse_args().quick else 1000
    texts = invented(prompts)
    print(f"{platform.platform()}, Python {platform.python_version()}, numpy {np.__version__}, ", end="")
    print(f"sacrebleu {metadata.version('sacrebleu')}")

    began = time.process_time()
    ours = diversity(np.repeat(np.arange(prompts), SAMPLES), texts, prompts)[:, DIVERSITY.index("self_bleu")]
    seconds = time.process_time() - began

    bleu = BLEU(effective_order=True)
    began = time.process_time()
    theirs = []
    for prompt in range(PEER_PROMPTS):
        some = texts[prompt * SAMPLES : (prompt + 1) * SAMPLES]
        theirs.append(np.mean([bleu.sentence_score(one, [other]).score / 100 for one, other in permutations(some, 2)]))
    peer_seconds = (time.process_time() - began) * prompts / PEER_PROMPTS
    difference = float(np.abs(ours[:PEER_PROMPTS] / theirs - 1).max())
    print(f"{prompts} prompts: all metrics {seconds:.1f} s")
    print(f"sacrebleu's sentence BLEU of their pairs: {peer_seconds:.0f} s (from {PEER_PROMPTS} prompts)")
    found = {"seconds": seconds, "sacrebleu_seconds": peer_seconds, "speedup": peer_seconds / seconds}
    print(json.dumps(found | {"prompts": prompts, "samples": SAMPLES, "max_rel_diff": difference}))


if __name__ == "__main__":
    main()
