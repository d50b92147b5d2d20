"""Single outputs are graded by lm-eval's own filters and `process_results`, as if each were the only one of its document."""

from collections.abc import Sequence
from dataclasses import dataclass

from contract.errors import LambdasweepError
from lambdasweep.tasks.answers import Grade
from lambdasweep.tasks.lm_eval_tasks.load import LmEvalTask
from lambdasweep.tasks.lm_eval_tasks.process_state import quiet
from lambdasweep.tasks.lm_eval_tasks.right_outputs import is_number
from lambdasweep.tasks.normalise import NORMALISERS


@dataclass(frozen=True, slots=True)
class LmEvalGrader:
    """Grades outputs of one task of lm-eval."""

    source: LmEvalTask

    def question(self, request_id: int) -> str:
        """Return the question of a request, without solved examples."""
        with quiet():
            return str(self.source.task.doc_to_text(self.source.asked[request_id].doc))

    def grade(self, outputs: Sequence[tuple[int, str]]) -> list[Grade]:
        """Return the grade of each output; see `answers.Grader`.

        An output is right where the task's metric is 1. The answer is what the metric's filter makes of the output.
        """
        with quiet():
            try:
                return [self._grade(*output) for output in outputs]
            except Exception as error:  # the task's own functions may raise anything
                raise LambdasweepError(
                    f"task {self.source.name}: lm-eval cannot grade an output ({type(error).__name__}: {error}). "
                    "The outputs are committed; mend the task and run again"
                ) from error

    def _grade(self, request_id: int, text: str) -> Grade:
        asked, task, settled = self.source.asked[request_id], self.source.task, self.source.outputs
        assert settled is not None
        (instance,) = asked.instances
        instance.resps, instance.filtered_resps = [text], {}
        metrics: dict[str, float] = {}
        for ensemble in task._filters:
            if ensemble.name not in settled.filters:
                continue
            ensemble.apply([instance])
            values = task.process_results(asked.doc, [instance.filtered_resps[ensemble.name]])
            metrics |= {f"{key},{ensemble.name}": float(value) for key, value in values.items() if is_number(value)}
        answer = instance.filtered_resps[settled.metric.rpartition(",")[2]]
        while isinstance(answer, (list, tuple)) and len(answer) == 1:
            (answer,) = answer
        if not metrics.get(settled.metric, -1.0) >= 0:
            raise ValueError(f"document {asked.number} is not judged by {settled.metric}, by which outputs are right")
        found = NORMALISERS[settled.normaliser](str(answer))
        return Grade(str(answer).strip(), found.answer_class, metrics[settled.metric] == 1.0, metrics)
