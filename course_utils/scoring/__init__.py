"""How good replies are: against references, by a judge's or people's votes, on benchmarks.

Scores against references were introduced in notebook 03, all else in notebooks 07 and 08; each
module here does one of these. The four that notebooks use most are imported from here.
"""

from course_utils.scoring.references import chrf, exact_match, scores, word_accuracy

__all__ = ["chrf", "exact_match", "scores", "word_accuracy"]
