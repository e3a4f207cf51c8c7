"""Knowledge distillation: a small model, the student, learns to give the outputs of a trained one, its teacher.

Two methods of J. Su, "Spectral Methods for Neural Network Designs", University of Maryland, 2022, chapter 2:
`end_to_end` compares the outputs of the two models, `sequential` trains the student block by block. Both begin best
from a student whose weights are decompositions of the teacher's: that is `convein.tensorize(teacher, ...,
decompose=True)`. Neither needs labels, and any two `nn.Module`s will do.
"""

from __future__ import annotations

from convein.distill.history import History
from convein.distill.methods import end_to_end, sequential

__all__ = ["History", "end_to_end", "sequential"]
