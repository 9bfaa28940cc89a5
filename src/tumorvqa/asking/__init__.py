"""From measurements to questions: every subtype is one program, which gives answer, trace and distractors."""
