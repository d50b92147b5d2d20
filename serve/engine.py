"""This module has the engine: one vLLM engine that holds θ(λ) and moves in place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.errors import EngineError
from contract.points import by_name
from merge.line import STRAIGHT, Line
from serve.core_requests import run_prompts
from serve.hooks.continuation_scores import EXTRA, limit_prefix_reads
from serve.hooks.seeded_draws import NUMBER, Draw, Drawn, Draws, TokenRecord
from serve.machine import host_memory
from serve.multinode import NodePlace
from serve.plugin import RESIDENT
from serve.reference import References
from serve.settings import EngineSettings, Sampling
from serve.start import llm_arguments
from serve.switch.tiers import RELOAD, Room
from serve.verify import Journey, Probe, Verdict, journey, probe_digest, probe_request, read_probe, way

LOADED = "loaded"  # what the route is called where an engine has one checkpoint


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt is one request to the engine. Its row r predicts the token after token r."""

    token_ids: Sequence[int]
    first_row: int  # the first row of which something is wanted
    # The tokens that the last row is asked about. Every other row is asked about the prompt's next token.
    last: Sequence[int]


@dataclass(frozen=True, slots=True)
class EngineScores:
    """The scores of several prompts have one entry for each token that was asked about, in no order."""

    prompt: npt.NDArray[np.int64]  # [T] index into the prompts
    row: npt.NDArray[np.int64]  # [T]
    token: npt.NDArray[np.int64]  # [T]
    logprob: npt.NDArray[np.float64]  # [T] nats
    rank: npt.NDArray[np.int64]  # [T] 1 = most likely
    top1: npt.NDArray[np.int64]  # [T] the most likely token
    top1_logprob: npt.NDArray[np.float64]  # [T] nats
    prompt_tokens: int  # the tokens of all prompts
    cached_tokens: int  # how many of them were read from the prefix cache


class Engine:
    """An engine is vLLM over a pair. It is not thread-safe. After any `EngineError` the process must end.

    When it starts, it is taken along the line as `serve.verify` says: a route of switching λ is used only if it makes the
    weights that vLLM itself loads, bit by bit. Where that is not the fast route, every switch goes through vLLM's loader,
    and `fallback` says why.

    Args:
        base: directory of the base checkpoint; also gives the architecture, unless the vocabularies are only shared.
        aligned: directory of the aligned checkpoint, or of each by name; None: `base` is scored as it is loaded, and the
            only λ is 0.
        settings: see `EngineSettings`.
        parents: where ranks keep the parents, one of `serve.switch.tiers.CHOICES`; changes no number.
        ranks_on_node: how many ranks of all engines share this machine's memory; None: this engine's ranks only.
        line: the line between the parents, which were checked to fit it.
        node_place: the place of this node among those of an engine over several, of which it is the first.
    """

    def __init__(
        self,
        base: Path,
        aligned: Path | Mapping[str, Path] | None,
        settings: EngineSettings,
        parents: str = "auto",
        ranks_on_node: int | None = None,
        line: Line = STRAIGHT,
        node_place: NodePlace | None = None,
    ) -> None:
        from vllm import LLM

        self.settings = settings
        self.lam: str | None = None
        self.digests: tuple[str, ...] = ()  # the digest of each rank's live weights
        arguments = llm_arguments(base, aligned, settings, parents, ranks_on_node, line, node_place)
        tiers: list[tuple[str, str]] = []
        if aligned is not None:
            on = way(base, by_name(aligned), line, Path(arguments["model"]))
            # An engine over several nodes has no references: an engine that loads another parent would need the same
            # machines. There it is enough that its own routes agree.
            asked = replace(on, others={}) if node_place is not None else on
            self._references = References(arguments, asked, settings.device)
        try:
            self._llm = LLM(**arguments)
            if aligned is not None:
                self._llm.init_weight_transfer_engine({"init_info": {}})
                tiers = self._llm.collective_rpc("interpolation_tier")
            self._llm.collective_rpc("interpolation_score_rows")
            self._llm.collective_rpc("interpolation_seeds")
            # All ranks answer, those of other nodes too; they are mostly on one kind of hardware.
            kinds = self._llm.collective_rpc("interpolation_hardware")
            self.hardware = " + ".join(sorted(set(kinds)))
            self.hardware_of_ranks = by_rank(kinds)
            limit_prefix_reads(self._llm.llm_engine.engine_core.engine_core.scheduler)
        except Exception as error:
            raise EngineError(f"the vLLM engine did not start: {error}") from error
        self.vocab_size: int = self._llm.llm_engine.model_config.get_vocab_size()
        if aligned is None:
            self.lam, self.route, self.fallback = "0", LOADED, ""
            self.probe_digest = probe_digest([self._probe()])
            return
        slower = next((reason for _, reason in tiers if reason), "")
        routes = {RELOAD: slower} if slower else {RESIDENT: "", RELOAD: ""}
        references = self._references
        verdict = self._travel(journey(routes, on, references.said, references.remembered))
        self.fallback = verdict.reason
        # Engines that start apart may choose other kernels, which no digest of weights shows.
        self.probe_digest = probe_digest(verdict.said)
        self._use(verdict.route, only=True)
        tier = f" {'/'.join(sorted({tier for tier, _ in tiers}))}" if verdict.route == RESIDENT else ""
        self.route = verdict.route + tier

    def switch(self, lam: str) -> None:
        """Move to θ at a point. Raises EngineError when that fails: the weights are then half-written."""
        if lam == self.lam:
            return
        self.lam = None
        try:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"lam": lam}})
            self._llm.finish_weight_update()
        except Exception as error:
            raise EngineError(f"the switch to λ = {lam} failed: {error}") from error
        self.lam = lam
        self.digests = tuple(self._llm.collective_rpc("interpolation_digest"))

    def _use(self, route: str, only: bool) -> None:
        self._llm.collective_rpc("interpolation_use", args=(route, only))

    def _travel(self, going: Journey) -> Verdict:
        """Do what a journey says. Afterwards the weights are those of the point where the journey ended."""
        answer: Probe | None = None
        while True:
            try:
                step = going.send(answer)
            except StopIteration as end:
                self.lam = None
                verdict: Verdict = end.value
                return verdict
            answer = None
            if step.kind == "use":
                self._use(step.route, only=False)
            elif step.kind == "go":
                self.lam = None
                self.switch(step.point)
            elif step.kind == "ask":
                answer = self._references.afresh(step.point)
            else:
                answer = self._probe()

    def _probe(self) -> Probe:
        """Answer the probe prompt with the live weights."""
        from vllm import SamplingParams

        ids, parameters = probe_request(self.vocab_size, self.settings.max_model_len)
        self.clear_prefix_cache()
        try:
            (output,) = self._llm.generate([{"prompt_token_ids": ids}], SamplingParams(**parameters), use_tqdm=False)
        except Exception as error:
            raise EngineError(f"the vLLM engine failed: {error}") from error
        return read_probe(output)

    def clear_prefix_cache(self) -> None:
        """Forget every cached prefix, so that what follows depends on nothing before it."""
        if not self._llm.reset_prefix_cache(reset_connector=True):
            raise EngineError("vLLM did not reset its prefix cache: requests are still running")

    def score(self, prompts: Sequence[Prompt]) -> EngineScores:
        """Add all prompts in order, run them, and return what was asked about them.

        Args:
            prompts: vLLM does not check again that it takes them.

        Raises:
            EngineError: the engine failed, or did not answer everything.
        """
        asked = (
            (prompt.token_ids, {EXTRA: [number, prompt.first_row, *prompt.last]})
            for number, prompt in enumerate(prompts)
        )
        try:
            cached_tokens = run_prompts(self._llm, asked)
            found = next(answer for answer in self._llm.collective_rpc("interpolation_rows") if answer is not None)
        except Exception as error:
            raise EngineError(f"the vLLM engine failed: {error}") from error
        where, scores = found
        return EngineScores(
            prompt=where[:, 0],
            row=where[:, 1],
            token=where[:, 2],
            logprob=scores[:, 0],
            rank=scores[:, 1].astype(np.int64),
            top1=scores[:, 2].astype(np.int64),
            top1_logprob=scores[:, 3],
            prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
            cached_tokens=cached_tokens,
        )

    def sample(self, draws: Sequence[Draw], sampling: Sampling, tokenizer: Any = None) -> Draws:
        """Add all draws in order, run them, and return what came of them.

        Tokens are drawn from the softmax of logits / temperature over the whole vocabulary; temperature 0 takes the
        likeliest.

        Args:
            draws: what is sampled; `sampling.samples` does not count here.
            sampling: how it is sampled. A sample ends with the token that completes one of the texts of `until`.
            tokenizer: a tokenizer of the transformers library, with which vLLM turns tokens into text to see those of
                `until`.

        Raises:
            EngineError: the engine failed, or did not tell what it drew.
        """
        from vllm import SamplingParams

        # Where a model thinks first, a text of `until` may stand in its thoughts. End tokens alone then end a sample, as
        # they do in lm-eval's vllm model.
        is_seen = tokenizer is not None and sampling.think_end_token is None
        until = [text for text in sampling.until or () if text] if is_seen else []
        processor = self._llm.llm_engine.output_processor  # the engine itself was started without a tokenizer
        processor.tokenizer = tokenizer if until else None
        try:
            outputs = (
                self._llm.generate(
                    [{"prompt_token_ids": list(draw.token_ids)} for draw in draws],
                    [
                        SamplingParams(
                            seed=draw.seed,
                            temperature=sampling.temperature,
                            top_p=sampling.top_p,
                            top_k=sampling.top_k,
                            max_tokens=sampling.max_tokens,
                            stop=until,
                            stop_token_ids=list(sampling.stop_token_ids),
                            # The end tokens of the checkpoint that the engine started with do not count.
                            ignore_eos=True,
                            detokenize=bool(until),
                            skip_special_tokens=False,  # an end of turn may be among the texts that a sample ends at
                            extra_args={NUMBER: number},
                            skip_clone=True,
                        )
                        for number, draw in enumerate(draws)
                    ],
                    use_tqdm=False,
                )
                if draws
                else []
            )
            taken = next(one for one in self._llm.collective_rpc("interpolation_draws_taken") if one is not None)
        except Exception as error:
            raise EngineError(f"the vLLM engine failed: {error}") from error
        finally:
            processor.tokenizer = None
        ends = [output.outputs[0] for output in outputs]
        return Draws(
            _drawn([(tuple(end.token_ids), str(end.finish_reason)) for end in ends], *taken),
            prompt_tokens=sum(len(draw.token_ids) for draw in draws),
            cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
        )


def by_rank(kinds: Sequence[str]) -> str:
    """Return the kind of hardware of all ranks; where kinds differ, that of each rank, because their order matters."""
    return " + ".join(kinds) if len(set(kinds)) > 1 else kinds[0]


def _drawn(
    ends: Sequence[tuple[tuple[int, ...], str]], numbers: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> list[Drawn]:
    """Put the tokens and the end of each request together with what `SeededDraws.take` says of its tokens.

    Raises:
        EngineError: other tokens were drawn than the engine returned.
    """
    order = np.argsort(numbers, kind="stable")  # the tokens of a request, in the order in which they were drawn
    bounds = np.searchsorted(numbers[order], np.arange(len(ends) + 1))
    found = []
    for number, (token_ids, reason) in enumerate(ends):
        # A token may be drawn after the one that completes a text which ends the sample.
        own = scores[order[bounds[number] : bounds[number + 1]]][: len(token_ids)]
        if own[:, 0].tolist() != list(token_ids):
            raise EngineError(f"the engine returned other tokens for sample {number} than were drawn")
        record = TokenRecord(
            logprob=own[:, 1].astype(np.float32),
            rank=own[:, 2].astype(np.int32),
            top1=own[:, 3].astype(np.int32),
            top1_logprob=own[:, 4].astype(np.float32),
            entropy=own[:, 5].astype(np.float32),
        )
        found.append(Drawn(token_ids, reason, bool(own[:, 6].all()), record))
    return found


def free_memory(settings: EngineSettings, ranks: int) -> Room:
    """Measure the memory that this machine has for `ranks` ranks; without a GPU, the numbers of the device are 0."""
    total, available = host_memory()
    if settings.device == "cuda":
        import torch

        if torch.cuda.is_available():
            free, device_total = torch.cuda.mem_get_info()
            ranks = min(ranks, torch.cuda.device_count())  # the others are on other nodes
            return Room(total, available, ranks, device_total, free, settings.gpu_share, settings.kv_cache_bytes)
    return Room(total, available, ranks)
