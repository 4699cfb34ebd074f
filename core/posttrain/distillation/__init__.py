"""Teachers, and which of a student's tokens stand for which of a teacher's."""
