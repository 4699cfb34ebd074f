"""Teachers, and the alignment of a student's tokens with a teacher's."""
